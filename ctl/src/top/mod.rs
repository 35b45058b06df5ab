//! `top`: what disks, queues and IOThreads do, live.

mod rows;
mod screen;

use std::io::{IsTerminal, Write, stdin, stdout};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::qmp::Qmp;
use crate::snapshot::Snapshot;
use crate::text::table;

/// Shows the rates of each interval until the user ends it, or those of one interval.
pub(crate) fn run(qmp: &mut Qmp, interval: Duration, once: bool) -> Result<()> {
    ensure!(
        once || (stdin().is_terminal() && stdout().is_terminal()),
        "top needs a terminal; 'top --once' prints the rates of one interval"
    );
    let before = Snapshot::take(qmp)?;
    if once {
        thread::sleep(interval);
        let now = Snapshot::take(qmp)?;
        let text = format!(
            "{}\n{}",
            table(&rows::disks(&before, &now)),
            table(&rows::iothreads(&before, &now))
        );
        stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    let mut terminal = ratatui::try_init()?;
    let result = show(qmp, &mut terminal, before, interval);
    ratatui::restore();
    result
}

fn show(
    qmp: &mut Qmp,
    terminal: &mut ratatui::DefaultTerminal,
    mut before: Snapshot,
    interval: Duration,
) -> Result<()> {
    let mut now = before.clone();
    let mut top = 0_usize;
    loop {
        let shown = screen::Shown::new(&before, &now, interval);
        top = top.min(shown.last());
        terminal.draw(|frame| screen::draw(frame, &shown, top))?;
        let next = now.taken + interval;
        match screen::key(next.saturating_duration_since(Instant::now()))? {
            screen::Key::End => return Ok(()),
            screen::Key::Up => top = top.saturating_sub(1),
            screen::Key::Down => top += 1,
            screen::Key::Other => {}
        }
        if Instant::now() >= next {
            before = std::mem::replace(&mut now, Snapshot::take(qmp)?);
        }
    }
}
