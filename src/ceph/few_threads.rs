//! The number of threads of a cluster's client where CPUs are few.
//!
//! librados hands each answer from a thread of the network to one of two others. On a host with two CPUs, waking them up costs
//! more than they gain (docs/results.md).

use std::thread;

/// The largest number of CPUs on which one thread of each kind is enough.
const FEW_CPUS: usize = 4;
/// The options for numbers of threads: of those that handle results, and of those for the network.
pub(super) const OPTIONS: [&str; 2] = ["librados_thread_count", "ms_async_op_threads"];

/// Returns the options that are better 1: those that the configuration leaves alone, if this process can use few CPUs.
///
/// `own` are librados' own numbers, and `configured` those after it has read the configuration. A number is empty if librados is
/// too old for the option.
pub(super) fn too_many(own: &[String; 2], configured: &[String; 2]) -> Vec<&'static str> {
    match thread::available_parallelism() {
        Ok(cpus) if cpus.get() > FEW_CPUS => Vec::new(),
        _ => left_alone(own, configured),
    }
}

fn left_alone(own: &[String; 2], configured: &[String; 2]) -> Vec<&'static str> {
    let options = OPTIONS.into_iter().zip(own.iter().zip(configured));
    options
        .filter(|(_, (own, configured))| own == configured && !own.is_empty())
        .map(|(option, _)| option)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_configuration_stay() {
        let own = ["2", "3"].map(str::to_owned);
        assert_eq!(left_alone(&own, &own), OPTIONS);
        assert_eq!(left_alone(&own, &["2", "5"].map(str::to_owned)), OPTIONS[..1]);
        let old = ["", "3"].map(str::to_owned);
        assert_eq!(left_alone(&old, &old), OPTIONS[1..]);
    }
}
