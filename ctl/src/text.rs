//! Text for people: tables, sizes, times.

use crate::rates::float;

/// Lays out rows in columns. The first column is aligned to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Makes a row.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Formats a number of bytes.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) if bytes.trailing_zeros() >= shift => format!("{} {unit}", bytes >> shift),
        Some((unit, shift)) => format!("{:.1} {unit}", float(bytes) / float(1 << shift)),
        None => format!("{bytes} B"),
    }
}

/// Formats a latency.
pub(crate) fn latency(nanos: Option<u64>) -> String {
    match nanos {
        None => "-".to_owned(),
        Some(nanos) if nanos < 10_000_000 => format!("{:.0}us", float(nanos) / 1e3),
        Some(nanos) if nanos < 10_000_000_000 => format!("{:.0}ms", float(nanos) / 1e6),
        Some(nanos) => format!("{:.0}s", float(nanos) / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_latencies_are_short() {
        assert_eq!(size(20 << 30), "20 GiB");
        assert_eq!(size((3 << 20) + (1 << 19)), "3.5 MiB");
        assert_eq!(size(512), "512 B");
        assert_eq!(latency(Some(85_300)), "85us");
        assert_eq!(latency(Some(42_000_000)), "42ms");
        assert_eq!(latency(None), "-");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [row(["DISK", "SIZE"]), row(["d", "20 GiB"])];
        assert_eq!(table(&rows), "DISK    SIZE\nd     20 GiB\n");
    }
}
