//! Medians, ratios and how far they can be trusted.

use crate::units::Random;

const RESAMPLES: usize = 4000;

/// The median; the mean of the two in the middle for an even number. 0 for none.
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

/// An estimate with the 95 % interval it is likely to be in.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Interval {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// How many times `ours` is `reference`: the ratio of the medians, bootstrapped over rounds.
///
/// Round `i` of both ran next to each other, so rounds are resampled as pairs. Fewer than five rounds
/// make an interval that is too narrow; it is then widened to the extremes of the rounds' own ratios.
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
    let mut ratios: Vec<f64> = if rounds < 5 {
        (0..rounds).map(|i| of(&[i])).chain([value]).collect()
    } else {
        let mut random = Random::new(1);
        let mut pick = || usize::try_from(random.below(rounds as u64)).unwrap_or(0);
        (0..RESAMPLES)
            .map(|_| of(&(0..rounds).map(|_| pick()).collect::<Vec<_>>()))
            .collect()
    };
    let cut = if rounds < 5 { 0 } else { RESAMPLES / 40 };
    Some(Interval::of(value, &mut ratios, cut))
}

/// How many times `new` is `old`, for rounds that did not run next to each other.
pub(crate) fn unpaired_ratio(new: &[f64], old: &[f64]) -> Option<Interval> {
    if new.is_empty() || old.is_empty() || old.iter().any(|&value| value <= 0.0) {
        return None;
    }
    let value = median(new) / median(old);
    if new.len().min(old.len()) < 5 {
        let mut ratios: Vec<f64> = new.iter().flat_map(|n| old.iter().map(move |o| n / o)).collect();
        return Some(Interval::of(value, &mut ratios, 0));
    }
    let mut random = Random::new(1);
    let mut resampled = |values: &[f64]| {
        let mut pick = || values[usize::try_from(random.below(values.len() as u64)).unwrap_or(0)];
        median(&values.iter().map(|_| pick()).collect::<Vec<_>>())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| resampled(new) / resampled(old)).collect();
    Some(Interval::of(value, &mut ratios, RESAMPLES / 40))
}

/// What a ratio's interval allows to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Faster,
    Slower,
    /// The interval has 1 in it and is narrow.
    Same,
    /// The interval has 1 in it and is wide.
    Noise,
}

impl Interval {
    /// All of `values` but the `cut` lowest and highest.
    fn of(value: f64, values: &mut [f64], cut: usize) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            value,
            low: values[cut],
            high: values[values.len() - 1 - cut],
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.low > 1.0 {
            Verdict::Faster
        } else if self.high < 1.0 {
            Verdict::Slower
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
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_clear_difference_has_an_interval_without_one() {
        let (ours, theirs) = ([20.0, 21.0, 19.0, 20.5, 20.0], [10.0, 10.5, 9.5, 10.0, 10.2]);
        let ratio = ratio(&ours, &theirs).unwrap();
        assert!(
            (ratio.value - 2.0).abs() < 0.05 && ratio.low > 1.7 && ratio.high < 2.3,
            "{ratio:?}"
        );
        assert_eq!(ratio.verdict(), Verdict::Faster);
    }

    #[test]
    fn noise_makes_no_claim() {
        let (ours, theirs) = (
            [10.0, 30.0, 5.0, 20.0, 12.0, 9.0],
            [12.0, 8.0, 25.0, 11.0, 19.0, 14.0],
        );
        assert_eq!(ratio(&ours, &theirs).unwrap().verdict(), Verdict::Noise);
    }

    #[test]
    fn few_rounds_give_the_extremes_instead_of_a_false_interval() {
        let ratio = ratio(&[10.0, 12.0, 8.0], &[10.0, 10.0, 10.0]).unwrap();
        assert_eq!((ratio.low, ratio.value, ratio.high), (0.8, 1.0, 1.2));
    }

    #[test]
    fn rounds_of_different_runs_are_not_taken_as_pairs() {
        // The same figures in another order: as pairs they would differ.
        let (new, old) = ([9.0, 10.0, 11.0, 12.0, 13.0], [13.0, 12.0, 11.0, 10.0, 9.0]);
        let ratio = unpaired_ratio(&new, &old).unwrap();
        assert!(
            ratio.value == 1.0 && ratio.low < 0.95 && ratio.high > 1.05,
            "{ratio:?}"
        );
        let slower = unpaired_ratio(&new.map(|v| v / 2.0), &old).unwrap();
        assert_eq!(slower.verdict(), Verdict::Slower);
        let few = unpaired_ratio(&[9.0, 12.0], &[10.0]).unwrap();
        assert_eq!((few.low, few.high), (0.9, 1.2));
    }

    #[test]
    fn without_a_reference_there_is_no_ratio() {
        assert_eq!(ratio(&[1.0], &[0.0]), None);
        assert_eq!(ratio(&[], &[]), None);
    }
}
