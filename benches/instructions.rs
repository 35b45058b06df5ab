//! Runs one hot path a given number of times, for `scripts/instructions` to count its instructions.
//!
//! Without arguments it lists the paths.

mod scenarios;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(wanted) = args.next() else {
        for (name, _) in scenarios::deterministic() {
            println!("{name}");
        }
        return;
    };
    let count: u64 = args.next().and_then(|arg| arg.parse().ok()).expect("NAME COUNT");
    let found = scenarios::deterministic()
        .into_iter()
        .find(|(name, _)| *name == wanted);
    let (_, mut step) = found.expect("the name of a scenario");
    (0..count).for_each(|_| step());
}
