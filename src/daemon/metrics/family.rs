//! Writes families of metrics.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The labels of a metric.
pub(super) type Labels = Vec<(&'static str, String)>;

/// The value of a metric.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Count(u64),
    /// A time in nanoseconds, which is shown in seconds.
    Nanos(u64),
    Float(f64),
}

/// The values of a histogram.
#[derive(Debug)]
pub(super) struct Buckets {
    pub(super) sum: f64,
    /// Upper bounds, each with the number of values since the previous bound. The last bound is infinite.
    pub(super) counts: Vec<(f64, u64)>,
}

/// Writes one family after the other.
#[derive(Debug)]
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Value {
    #[allow(
        clippy::cast_precision_loss,
        reason = "exact up to 104 days, and then to a part in 2^53"
    )]
    fn seconds(nanos: u64) -> f64 {
        nanos as f64 / 1e9
    }
}

impl<'a> Families<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// Writes a counter. Its metrics have the suffix `_total`, which is not part of `name`.
    pub(super) fn counter(
        &mut self,
        name: &str,
        help: &str,
        metrics: impl IntoIterator<Item = (Labels, Value)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        for (labels, value) in metrics {
            with_labels(&mut family, &labels, |metric| match value {
                Value::Count(count) => metric.encode_counter::<NoLabelSet, _, u64>(&count, None),
                Value::Nanos(nanos) => {
                    metric.encode_counter::<NoLabelSet, _, u64>(&Value::seconds(nanos), None)
                }
                Value::Float(float) => metric.encode_counter::<NoLabelSet, _, u64>(&float, None),
            })?;
        }
        Ok(())
    }

    /// Writes a gauge.
    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        metrics: impl IntoIterator<Item = (Labels, Value)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Gauge)?;
        for (labels, value) in metrics {
            with_labels(&mut family, &labels, |metric| match value {
                Value::Count(count) => metric.encode_gauge(&count),
                Value::Nanos(nanos) => metric.encode_gauge(&Value::seconds(nanos)),
                Value::Float(float) => metric.encode_gauge(&float),
            })?;
        }
        Ok(())
    }

    /// Writes a histogram.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        metrics: impl IntoIterator<Item = (Labels, Buckets)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Histogram)?;
        for (labels, Buckets { sum, counts }) in metrics {
            let count = counts.iter().map(|(_, count)| count).sum();
            with_labels(&mut family, &labels, |metric| {
                metric.encode_histogram::<NoLabelSet>(sum, count, &counts, None)
            })?;
        }
        Ok(())
    }

    /// Writes facts as labels. The metrics have the suffix `_info`, which is not part of `name`.
    pub(super) fn info(
        &mut self,
        name: &str,
        help: &str,
        metrics: impl IntoIterator<Item = Labels>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Info)?;
        metrics
            .into_iter()
            .try_for_each(|labels| family.encode_info(&labels))
    }

    /// Begins a family. A name that ends in a base unit has that unit.
    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        let (name, unit) = match (name.strip_suffix("_seconds"), name.strip_suffix("_bytes")) {
            (Some(name), _) => (name, Some(&Unit::Seconds)),
            (_, Some(name)) => (name, Some(&Unit::Bytes)),
            _ => (name, None),
        };
        self.0.encode_descriptor(name, help, unit, kind)
    }
}

fn with_labels(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    encode(&mut family.encode_family(labels)?)
}
