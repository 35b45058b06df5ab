//! Time per batch of each hot path: `cargo bench --bench micro`.
//!
//! Prints the fastest and the median sample of each path, in nanoseconds.

use std::time::{Duration, Instant};

mod scenarios;

const SAMPLES: usize = 101;
/// The least time of a sample. Reading the clock costs nothing in comparison.
const SAMPLE_TIME: Duration = Duration::from_millis(10);

fn main() {
    println!("{:<24}{:>12}{:>12}", "path", "fastest", "median");
    for (name, mut step) in scenarios::all() {
        let steps = steps_per_sample(&mut step);
        let mut samples = [(); SAMPLES].map(|()| sample(&mut step, steps).as_nanos() / u128::from(steps));
        samples.sort_unstable();
        println!("{name:<24}{:>12}{:>12}", samples[0], samples[SAMPLES / 2]);
    }
}

/// Returns the number of steps that take long enough to be timed. Doubling it warms up what is measured.
fn steps_per_sample(step: &mut dyn FnMut()) -> u32 {
    let mut steps = 1;
    while sample(step, steps) < SAMPLE_TIME {
        steps *= 2;
    }
    steps
}

/// Returns the time of a number of steps.
fn sample(step: &mut dyn FnMut(), steps: u32) -> Duration {
    let start = Instant::now();
    (0..steps).for_each(|_| step());
    start.elapsed()
}
