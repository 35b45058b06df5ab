//! The limits of a throttle group.

use serde::{Deserialize, Serialize};

use super::bucket::Bucket;

/// The maximum value of a limit, as in QEMU.
const LARGEST: u64 = 1_000_000_000_000_000;

/// The limits of a throttle group, named as in QMP and on the command line. Rates are per second, where 0 is no limit.
/// Burst lengths are in seconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ThrottleLimits {
    pub iops_total: u64,
    pub iops_total_max: u64,
    pub iops_total_max_length: u64,
    pub iops_read: u64,
    pub iops_read_max: u64,
    pub iops_read_max_length: u64,
    pub iops_write: u64,
    pub iops_write_max: u64,
    pub iops_write_max_length: u64,
    pub bps_total: u64,
    pub bps_total_max: u64,
    pub bps_total_max_length: u64,
    pub bps_read: u64,
    pub bps_read_max: u64,
    pub bps_read_max_length: u64,
    pub bps_write: u64,
    pub bps_write_max: u64,
    pub bps_write_max_length: u64,
    /// The size in bytes above which a request counts as several, in proportion. 0: every request counts as one.
    pub iops_size: u64,
}

impl Default for ThrottleLimits {
    fn default() -> Self {
        Self {
            iops_total: 0,
            iops_total_max: 0,
            iops_total_max_length: 1,
            iops_read: 0,
            iops_read_max: 0,
            iops_read_max_length: 1,
            iops_write: 0,
            iops_write_max: 0,
            iops_write_max_length: 1,
            bps_total: 0,
            bps_total_max: 0,
            bps_total_max_length: 1,
            bps_read: 0,
            bps_read_max: 0,
            bps_read_max_length: 1,
            bps_write: 0,
            bps_write_max: 0,
            bps_write_max_length: 1,
            iops_size: 0,
        }
    }
}

/// The limits contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LimitsError {
    #[error("{kind}-total cannot be used together with {kind}-read or {kind}-write")]
    TotalAndParts { kind: &'static str },
    #[error("{0}-max needs {0} as well")]
    BurstAlone(&'static str),
    #[error("{0}-max must not be lower than {0}")]
    BurstTooLow(&'static str),
    #[error("{0}-max-length must not be 0")]
    NoLength(&'static str),
    #[error("{0}-max-length needs {0}-max as well")]
    LengthAlone(&'static str),
    #[error("{0} and what follows from it must be at most {LARGEST}")]
    TooLarge(&'static str),
    #[error("iops-size needs a limit of iops")]
    SizeAlone,
}

/// The limits of one kind: average, burst, and length of a burst in seconds.
type Rate = (u64, u64, u64);

impl ThrottleLimits {
    /// Returns the limits with their names, in a fixed order: iops total, read, write; bps total, read, write.
    fn rates(&self) -> [(&'static str, Rate); 6] {
        let l = self;
        [
            (
                "iops-total",
                (l.iops_total, l.iops_total_max, l.iops_total_max_length),
            ),
            (
                "iops-read",
                (l.iops_read, l.iops_read_max, l.iops_read_max_length),
            ),
            (
                "iops-write",
                (l.iops_write, l.iops_write_max, l.iops_write_max_length),
            ),
            (
                "bps-total",
                (l.bps_total, l.bps_total_max, l.bps_total_max_length),
            ),
            ("bps-read", (l.bps_read, l.bps_read_max, l.bps_read_max_length)),
            (
                "bps-write",
                (l.bps_write, l.bps_write_max, l.bps_write_max_length),
            ),
        ]
    }

    /// Checks that the limits are consistent.
    ///
    /// # Errors
    /// The limits contradict each other, are too large, or have no meaning.
    pub fn check(&self) -> Result<(), LimitsError> {
        let rates = self.rates();
        for (kind, parts) in [("iops", &rates[..3]), ("bps", &rates[3..])] {
            let is_set = |(_, (avg, max, _)): &(_, Rate)| *avg > 0 || *max > 0;
            if is_set(&parts[0]) && parts[1..].iter().any(is_set) {
                return Err(LimitsError::TotalAndParts { kind });
            }
        }
        rates
            .iter()
            .try_for_each(|&(name, rate)| check_rate(name, rate))?;
        let counts_requests = rates[..3].iter().any(|(_, (avg, ..))| *avg > 0);
        if self.iops_size > 0 && !counts_requests {
            return Err(LimitsError::SizeAlone);
        }
        Ok(())
    }

    /// Returns whether there is a limit of this name.
    pub(crate) fn has(name: &str) -> bool {
        let limits = serde_json::to_value(Self::default());
        limits.is_ok_and(|limits| limits.get(name).is_some())
    }

    /// Returns whether reads and writes share a limit.
    pub(super) fn have_total(&self) -> bool {
        self.iops_total > 0 || self.bps_total > 0
    }

    /// Returns whether some limit counts only for reads, or only for writes.
    pub(super) fn distinguish_directions(&self) -> bool {
        [self.iops_read, self.iops_write, self.bps_read, self.bps_write]
            .iter()
            .any(|&limit| limit > 0)
    }

    /// Makes empty buckets, in the order of [`rates`](Self::rates).
    pub(super) fn buckets(&self) -> [Bucket; 6] {
        self.rates()
            .map(|(_, (avg, max, length))| Bucket::new(avg, max, length))
    }
}

fn check_rate(name: &'static str, (avg, max, length): Rate) -> Result<(), LimitsError> {
    if length == 0 {
        return Err(LimitsError::NoLength(name));
    }
    if length > 1 && max == 0 {
        return Err(LimitsError::LengthAlone(name));
    }
    if max > 0 && avg == 0 {
        return Err(LimitsError::BurstAlone(name));
    }
    if max > 0 && max < avg {
        return Err(LimitsError::BurstTooLow(name));
    }
    // Also bounds the total amount of a burst.
    if avg > LARGEST || max > LARGEST || max.saturating_mul(length) > LARGEST {
        return Err(LimitsError::TooLarge(name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> ThrottleLimits {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let cases = [
            (
                r#"{"iops-total": 5, "iops-read": 1}"#,
                LimitsError::TotalAndParts { kind: "iops" },
            ),
            (
                r#"{"bps-total": 5, "bps-write": 1}"#,
                LimitsError::TotalAndParts { kind: "bps" },
            ),
            (r#"{"bps-read-max": 5}"#, LimitsError::BurstAlone("bps-read")),
            (
                r#"{"bps-read": 6, "bps-read-max": 5}"#,
                LimitsError::BurstTooLow("bps-read"),
            ),
            (
                r#"{"iops-total": 6, "iops-total-max-length": 0}"#,
                LimitsError::NoLength("iops-total"),
            ),
            (
                r#"{"iops-total": 6, "iops-total-max-length": 2}"#,
                LimitsError::LengthAlone("iops-total"),
            ),
            (
                r#"{"iops-total": 1000000000000001}"#,
                LimitsError::TooLarge("iops-total"),
            ),
            (
                r#"{"iops-total": 1, "iops-total-max": 1000000000000, "iops-total-max-length": 2000}"#,
                LimitsError::TooLarge("iops-total"),
            ),
            (r#"{"bps-total": 1, "iops-size": 4096}"#, LimitsError::SizeAlone),
        ];
        for (json, error) in cases {
            assert_eq!(parse(json).check(), Err(error), "{json}");
        }
    }

    #[test]
    fn limits_have_the_names_of_qmp() {
        let limits =
            parse(r#"{"iops-read": 5, "bps-write": 7, "bps-write-max": 9, "bps-write-max-length": 3}"#);
        assert_eq!(limits.check(), Ok(()));
        assert_eq!((limits.iops_read, limits.bps_write_max_length), (5, 3));
        let json = serde_json::to_value(limits).unwrap();
        assert_eq!(
            (&json["iops-read"], &json["iops-total-max-length"]),
            (&5.into(), &1.into())
        );
        assert!(serde_json::from_str::<ThrottleLimits>(r#"{"iops": 1}"#).is_err());
    }
}
