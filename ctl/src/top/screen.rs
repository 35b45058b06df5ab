//! The terminal.

use std::time::Duration;

use anyhow::Result;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table};

use super::rows;
use crate::snapshot::Snapshot;

/// The tables to draw.
pub(super) struct Shown {
    interval: Duration,
    disks: Vec<Vec<String>>,
    iothreads: Vec<Vec<String>>,
    frontends: usize,
    count: usize,
}

/// What the user wants.
pub(super) enum Key {
    End,
    Up,
    Down,
    /// Another key, or none in time.
    Other,
}

impl Shown {
    pub(super) fn new(before: &Snapshot, now: &Snapshot, interval: Duration) -> Self {
        Self {
            interval,
            disks: rows::disks(before, now),
            iothreads: rows::iothreads(before, now),
            frontends: now
                .disks
                .iter()
                .filter(|disk| disk.export.frontend.is_some())
                .count(),
            count: now.disks.len(),
        }
    }

    /// Returns the largest number of rows to scroll.
    pub(super) fn last(&self) -> usize {
        self.disks.len().saturating_sub(2)
    }
}

/// Draws the tables. The first `top` rows of the disks are left out.
pub(super) fn draw(frame: &mut Frame<'_>, shown: &Shown, top: usize) {
    // At most a third of the screen.
    let most = usize::from(frame.area().height / 3);
    let threads = u16::try_from(shown.iothreads.len().min(most)).unwrap_or(u16::MAX);
    let parts = [
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(threads),
        Constraint::Length(1),
    ];
    let [title, disks, iothreads, help] = Layout::vertical(parts).areas(frame.area());
    let told = format!(
        "disks: {}   frontends: {}   every {} s",
        shown.count,
        shown.frontends,
        shown.interval.as_secs_f64()
    );
    frame.render_widget(Text::from(told), title);
    draw_table(frame, disks, &shown.disks, top);
    draw_table(frame, iothreads, &shown.iothreads, 0);
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Line::styled("q: end   up, down: scroll", dim), help);
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, rows: &[Vec<String>], top: usize) {
    let Some((heading, lines)) = rows.split_first() else {
        return;
    };
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX).max(5))
    };
    let widths: Vec<Constraint> = (0..heading.len()).map(width).collect();
    let cells = |row: &Vec<String>| {
        let cell = |(column, text): (usize, &String)| {
            let line = Line::from(text.clone()).style(style(text));
            Cell::from(if column == 0 { line } else { line.right_aligned() })
        };
        Row::new(row.iter().enumerate().map(cell).collect::<Vec<_>>())
    };
    let heading = cells(heading).style(Style::new().add_modifier(Modifier::REVERSED));
    let table = Table::new(lines.iter().skip(top).map(cells), widths).header(heading);
    frame.render_widget(table, area);
}

/// Points out states that need an operator.
fn style(text: &str) -> Style {
    match text {
        "broken" | "full" => Style::new().fg(Color::Red),
        "limited" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

/// Waits for a key, at most for `time`.
pub(super) fn key(time: Duration) -> Result<Key> {
    if !event::poll(time)? {
        return Ok(Key::Other);
    }
    let Event::Key(key) = event::read()? else {
        return Ok(Key::Other);
    };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Ok(match key.code {
        _ if key.kind != KeyEventKind::Press => Key::Other,
        KeyCode::Char('q') | KeyCode::Esc => Key::End,
        KeyCode::Char('c') if control => Key::End,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        _ => Key::Other,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::snapshot::{Cache, Disk, Export, Figures, Image, IoThread, Node, ThreadFigures};

    fn snapshot(completions: u64, cpu: u64, taken: Instant) -> Snapshot {
        let figures = |ring: Option<&str>| Figures {
            ring: ring.map(str::to_owned),
            completions,
            notifications: completions / 8,
            read_bytes: completions << 12,
            ..Figures::default()
        };
        let disk = |number| Disk {
            id: format!("disk{number}"),
            node: Node {
                node_name: "n".to_owned(),
                drv: "file".to_owned(),
                file: "disk.img".to_owned(),
                ro: false,
                active: true,
                iops: 0,
                bps: 0,
                image: Image { virtual_size: 4096 },
                cache: Cache { direct: false },
            },
            export: Export {
                engine: "inline".to_owned(),
                socket: "s".to_owned(),
                frontend: None,
                queues: vec![figures(Some("running")), figures(Some("broken"))],
                total: figures(None),
            },
        };
        Snapshot {
            taken,
            disks: (0..20).map(disk).collect(),
            iothreads: vec![IoThread {
                id: "io0".to_owned(),
                x_figures: ThreadFigures {
                    cpu_ns: cpu,
                    ..ThreadFigures::default()
                },
            }],
        }
    }

    fn screen(top: usize) -> String {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let (before, now) = (
            snapshot(0, 0, start),
            snapshot(123_456, 870_000_000, start + second),
        );
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let shown = Shown::new(&before, &now, second);
        terminal.draw(|frame| draw(frame, &shown, top)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_tables_fit_into_80_columns() {
        let text = screen(0);
        assert!(text.contains("disks: 20   frontends: 0   every 1 s"), "{text}");
        for cell in [
            "123456",
            "482.2",
            "COMPL/INT",
            "8.0",
            "broken",
            "io0",
            "87%",
            "q: end",
        ] {
            assert!(text.contains(cell), "{cell}: {text}");
        }
    }

    #[test]
    fn many_disks_can_be_scrolled() {
        assert!(screen(0).contains("disk0") && !screen(0).contains("disk12"));
        assert!(screen(30).contains("disk12") && !screen(30).contains("disk0 "));
    }
}
