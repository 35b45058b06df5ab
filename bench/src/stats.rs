//! Medians and ratios, and the intervals that tell how certain they are.

use crate::units::{Random, short};

const RESAMPLES: usize = 4000;
/// Minimum number of rounds for a bootstrap. With fewer rounds its interval is too narrow.
pub(crate) const ENOUGH_ROUNDS: usize = 5;

/// Returns the median: for an even number of values the mean of the middle two, for none 0.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// An estimate and the interval that it is likely to be in.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Interval {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) bounds: Bounds,
}

/// The meaning of an interval's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Bounds {
    /// A 95 % confidence interval.
    #[serde(rename = "95-percent")]
    Confidence,
    /// The lowest and the highest ratio of a round: too few rounds for a confidence interval.
    #[serde(rename = "extremes")]
    Extremes,
    /// A single round, which has no interval.
    #[serde(rename = "one-round")]
    OneRound,
}

impl Bounds {
    pub(crate) fn of(rounds: usize) -> Self {
        match rounds {
            0 | 1 => Self::OneRound,
            2..ENOUGH_ROUNDS => Self::Extremes,
            _ => Self::Confidence,
        }
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Confidence => "95 %",
            Self::Extremes => "extremes",
            Self::OneRound => "one round",
        }
    }
}

/// Returns the median of `ours` divided by the median of `reference`, with an interval from a bootstrap.
///
/// Round `i` of both ran next to each other, so the bootstrap resamples pairs of rounds. Its interval over fewer
/// than five rounds would be too narrow. The lowest and the highest ratio of a round take its place.
pub(crate) fn ratio(ours: &[f64], reference: &[f64]) -> Option<Interval> {
    let rounds = ours.len().min(reference.len());
    if rounds == 0 || reference.iter().any(|&value| value <= 0.0) {
        return None;
    }
    let of = |picks: &[usize]| {
        let pick = |values: &[f64]| median(&picks.iter().map(|&i| values[i]).collect::<Vec<_>>());
        pick(ours) / pick(reference)
    };
    let value = of(&(0..rounds).collect::<Vec<_>>());
    let bounds = Bounds::of(rounds);
    let mut ratios: Vec<f64> = if bounds != Bounds::Confidence {
        (0..rounds).map(|i| of(&[i])).chain([value]).collect()
    } else {
        let mut random = Random::new(1);
        let mut pick = || usize::try_from(random.below(rounds as u64)).unwrap_or(0);
        (0..RESAMPLES)
            .map(|_| of(&(0..rounds).map(|_| pick()).collect::<Vec<_>>()))
            .collect()
    };
    Some(Interval::of(value, &mut ratios, bounds))
}

/// Formats a ratio with its interval.
pub(crate) fn spelled(ratio: Option<Interval>) -> String {
    let Some(Interval { value, low, high, .. }) = ratio else {
        return "-".to_owned();
    };
    format!("{} ({}..{})", short(value), short(low), short(high))
}

/// Returns the median of `new` divided by the median of `old`, for rounds that did not run next to each other.
pub(crate) fn unpaired_ratio(new: &[f64], old: &[f64]) -> Option<Interval> {
    if new.is_empty() || old.is_empty() || old.iter().any(|&value| value <= 0.0) {
        return None;
    }
    let value = median(new) / median(old);
    let bounds = Bounds::of(new.len().min(old.len()));
    if bounds != Bounds::Confidence {
        let mut ratios: Vec<f64> = new.iter().flat_map(|n| old.iter().map(move |o| n / o)).collect();
        return Some(Interval::of(value, &mut ratios, bounds));
    }
    let mut random = Random::new(1);
    let mut resampled = |values: &[f64]| {
        let mut pick = || values[usize::try_from(random.below(values.len() as u64)).unwrap_or(0)];
        median(&values.iter().map(|_| pick()).collect::<Vec<_>>())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| resampled(new) / resampled(old)).collect();
    Some(Interval::of(value, &mut ratios, bounds))
}

/// The conclusion that a ratio's interval allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Higher,
    Lower,
    /// The interval contains 1 and is narrow.
    Same,
    /// The interval contains 1 and is wide.
    Noise,
    /// A single round proves nothing.
    OneRound,
}

impl Interval {
    /// Spans the middle 95 % of `values`, or all of them if they are only the rounds' own ratios.
    fn of(value: f64, values: &mut [f64], bounds: Bounds) -> Self {
        let cut = match bounds {
            Bounds::Confidence => values.len() / 40,
            Bounds::Extremes | Bounds::OneRound => 0,
        };
        values.sort_by(f64::total_cmp);
        Self {
            value,
            low: values[cut],
            high: values[values.len() - 1 - cut],
            bounds,
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.bounds == Bounds::OneRound {
            Verdict::OneRound
        } else if self.low > 1.0 {
            Verdict::Higher
        } else if self.high < 1.0 {
            Verdict::Lower
        } else if self.high - self.low <= 0.1 {
            Verdict::Same
        } else {
            Verdict::Noise
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_a_mean() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_interval_of_a_clear_difference_excludes_one() {
        let (ours, theirs) = ([20.0, 21.0, 19.0, 20.5, 20.0], [10.0, 10.5, 9.5, 10.0, 10.2]);
        let ratio = ratio(&ours, &theirs).unwrap();
        assert!(
            (ratio.value - 2.0).abs() < 0.05 && ratio.low > 1.7 && ratio.high < 2.3,
            "{ratio:?}"
        );
        assert_eq!(ratio.verdict(), Verdict::Higher);
    }

    #[test]
    fn noisy_rounds_make_no_claim() {
        let (ours, theirs) = (
            [10.0, 30.0, 5.0, 20.0, 12.0, 9.0],
            [12.0, 8.0, 25.0, 11.0, 19.0, 14.0],
        );
        assert_eq!(ratio(&ours, &theirs).unwrap().verdict(), Verdict::Noise);
    }

    #[test]
    fn few_rounds_give_extremes_not_an_interval() {
        let ratio = ratio(&[10.0, 12.0, 8.0], &[10.0, 10.0, 10.0]).unwrap();
        assert_eq!((ratio.low, ratio.value, ratio.high), (0.8, 1.0, 1.2));
        assert_eq!(ratio.bounds, Bounds::Extremes);
    }

    #[test]
    fn one_round_has_no_verdict() {
        let ratio = ratio(&[20.0], &[10.0]).unwrap();
        assert_eq!((ratio.value, ratio.verdict()), (2.0, Verdict::OneRound));
    }

    #[test]
    fn rounds_of_different_runs_are_not_taken_as_pairs() {
        // The same figures in another order: the ratios of pairs would differ.
        let (new, old) = ([9.0, 10.0, 11.0, 12.0, 13.0], [13.0, 12.0, 11.0, 10.0, 9.0]);
        let ratio = unpaired_ratio(&new, &old).unwrap();
        assert!(
            ratio.value == 1.0 && ratio.low < 0.95 && ratio.high > 1.05,
            "{ratio:?}"
        );
        let slower = unpaired_ratio(&new.map(|v| v / 2.0), &old).unwrap();
        assert_eq!(slower.verdict(), Verdict::Lower);
        let few = unpaired_ratio(&[9.0, 12.0], &[10.0]).unwrap();
        assert_eq!((few.low, few.high), (0.9, 1.2));
    }

    #[test]
    fn without_a_reference_there_is_no_ratio() {
        assert_eq!(ratio(&[1.0], &[0.0]), None);
        assert_eq!(ratio(&[], &[]), None);
    }
}
