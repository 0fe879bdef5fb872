//! Snapshots as points, in a form that is small enough to keep hours of it and fast to send: all that stays the same from one
//! collection to the next (names, help, attributes, bounds of buckets) is encoded once and shared. The protocol has numbers and
//! times in eight bytes each, whatever their values: a request is that text with the numbers put into their places.

use std::sync::Arc;
use std::time::SystemTime;

use crate::export::engine::meter::{Meter, Metered};
use crate::export::engine::wire::{put_fixed64, put_head, put_small, put_text};
use crate::export::engine::{Chunk, Points};
use crate::host::version;
use crate::metrics::histogram::{BUCKETS, upper_bound_seconds};
use crate::metrics::metric::{Kind, Metric};
use crate::metrics::snapshot::{ALLOCATION, Snapshot, Value};
use crate::monitor::file_groups::{self, Labels};

/// Sums since the start, not since the last point.
const CUMULATIVE: u8 = 2;
/// Flag of a point without a value.
const NO_VALUE: u8 = 1;

/// What belongs into a place of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// The time of the collection.
    Time,
    /// The next of the values.
    Value,
    /// The next of the values, which may be NaN: then the flag two bytes before is to be set.
    Gauge,
}

/// A message, and the places in it that are filled in later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Template {
    bytes: Vec<u8>,
    places: Vec<(u32, Fill)>,
}

impl Template {
    /// A field of eight bytes that are known later.
    fn place(&mut self, field: u8, fill: Fill) {
        let at = put_fixed64(&mut self.bytes, field, 0);
        self.places.push((at as u32, fill));
    }

    /// Puts `inner` in as a field.
    fn nest(&mut self, field: u8, inner: &Template) {
        put_head(&mut self.bytes, field, inner.bytes.len());
        let shift = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&inner.bytes);
        self.places.extend(inner.places.iter().map(|(at, fill)| (at + shift, *fill)));
    }

    /// A message with these attributes in a field of the number.
    fn attributes<'a>(&mut self, field: u8, all: impl Iterator<Item = (&'a str, &'a str)>) {
        for (name, value) in all {
            let (mut any, mut attribute) = (Template::default(), Template::default());
            put_head(&mut any.bytes, 1, value.len());
            any.bytes.extend_from_slice(value.as_bytes());
            put_text(&mut attribute.bytes, 1, name);
            attribute.nest(2, &any);
            self.nest(field, &attribute);
        }
    }
}

/// What the points of some collections have in common: a `ResourceMetrics` without times and values.
#[derive(Debug)]
struct Shape {
    template: Template,
    _bytes: Metered,
}

/// Points of one collection: all of it, or as many as fit into a batch.
#[derive(Debug)]
pub struct Collection {
    shape: Arc<Shape>,
    /// Time of the collection, in nanoseconds since 1970.
    time: u64,
    /// What goes into its places: whole numbers as they are, others as their bits.
    values: Box<[u64]>,
    points: usize,
    _bytes: Metered,
}

impl Points for Collection {
    fn count(&self) -> usize {
        self.points
    }
}

impl Collection {
    fn new(shape: Arc<Shape>, time: u64, values: Vec<u64>, points: usize, meter: &Meter) -> Self {
        let values = values.into_boxed_slice();
        let bytes = size_of::<Chunk<Self>>() + size_of_val(&*values) + ALLOCATION;
        Self { shape, time, values, points, _bytes: meter.add(bytes) }
    }

    /// Gives up so many points, or all that there are. Returns how many.
    pub fn give_up(&mut self, points: usize) -> usize {
        let given_up = points.min(self.points);
        self.points -= given_up;
        given_up
    }

    /// Adds it to a request.
    fn put(&self, out: &mut Vec<u8>) {
        let Template { bytes, places } = &self.shape.template;
        put_head(out, 1, bytes.len());
        let start = out.len();
        out.extend_from_slice(bytes);
        let mut values = self.values.iter();
        for (at, fill) in places {
            let at = start + *at as usize;
            let bits = match fill {
                Fill::Time => self.time,
                Fill::Value => values.next().copied().unwrap_or_default(),
                Fill::Gauge => match values.next().copied().unwrap_or_default() {
                    bits if f64::from_bits(bits).is_nan() => {
                        out[at - 2] = NO_VALUE;
                        0
                    }
                    bits => bits,
                },
            };
            out[at..at + 8].copy_from_slice(&bits.to_le_bytes());
        }
    }
}

/// An `ExportMetricsServiceRequest`.
pub fn request<'a>(collections: impl Iterator<Item = &'a Collection>) -> Vec<u8> {
    let mut out = Vec::new();
    collections.for_each(|collection| collection.put(&mut out));
    out
}

/// Turns snapshots into points.
pub struct Converter {
    /// A `Resource`.
    resource: Template,
    batch_size: usize,
    /// When the agent started, which is when its counters did, in nanoseconds since 1970.
    start: Option<u64>,
    /// The shape of each part of the last collection, to be shared.
    last: Vec<Arc<Shape>>,
    meter: Meter,
}

/// Points that are being gathered.
#[derive(Default)]
struct Gathered {
    /// A `ScopeMetrics`.
    metrics: Template,
    values: Vec<u64>,
    points: usize,
}

impl Converter {
    /// For points of this resource, at most `batch_size` together.
    pub fn new(attributes: Vec<(String, String)>, batch_size: usize, meter: Meter) -> Self {
        let mut resource = Template::default();
        resource.attributes(1, attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        Self { resource, batch_size, start: None, last: Vec::new(), meter }
    }

    /// The points of `snapshot`; none if its time is before 1970.
    pub fn collections(&mut self, snapshot: &Snapshot) -> Vec<Collection> {
        let nanos = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        };
        let Some(time) = nanos(snapshot.collected_at) else { return Vec::new() };
        // The clock may be set later: a start that moves would be another start.
        let age = snapshot.collected_instant.saturating_duration_since(snapshot.started);
        let started = || snapshot.collected_at.checked_sub(age).and_then(nanos).unwrap_or(time);
        let start = (*self.start.get_or_insert_with(started)).min(time);
        let mut parts = vec![Gathered::default()];
        let groups: Vec<_> = snapshot.files.iter().flat_map(|files| file_groups::families(files)).collect();
        let of_groups = groups.iter().map(|family| {
            let series = family.series.iter().map(|(labels, value)| (labels.clone(), value));
            (family.metric, series.collect::<Vec<_>>())
        });
        let families = snapshot.families.iter().map(|family| {
            let series = family.series.iter().map(|s| (s.named(family.metric).collect(), &s.value));
            (family.metric, series.collect::<Vec<_>>())
        });
        for (metric, series) in families.chain(of_groups) {
            let mut series = &series[..];
            while !series.is_empty() {
                let full = parts.last().is_none_or(|part| part.points >= self.batch_size);
                if full {
                    parts.push(Gathered::default());
                }
                if let Some(part) = parts.last_mut() {
                    let (these, rest) = series.split_at(series.len().min(self.batch_size - part.points));
                    part.put(metric, these, start);
                    series = rest;
                }
            }
        }
        let shapes: Vec<_> = parts.iter().enumerate().map(|(i, part)| self.shape(i, &part.metrics)).collect();
        self.last.clone_from(&shapes);
        let collections = parts.into_iter().zip(shapes).filter(|(part, _)| part.points > 0);
        collections.map(|(part, shape)| Collection::new(shape, time, part.values, part.points, &self.meter)).collect()
    }

    /// The shape of a part with these metrics, or the same as it was the last time.
    fn shape(&self, part: usize, metrics: &Template) -> Arc<Shape> {
        let (mut scope, mut scoped, mut template) = (Vec::new(), Template::default(), Template::default());
        put_text(&mut scope, 1, "ebpf-sidecar");
        put_text(&mut scope, 2, version::VERSION);
        scoped.nest(1, &Template { bytes: scope, places: Vec::new() });
        let shift = scoped.bytes.len() as u32;
        scoped.bytes.extend_from_slice(&metrics.bytes);
        scoped.places.extend(metrics.places.iter().map(|(at, fill)| (at + shift, *fill)));
        template.nest(1, &self.resource);
        template.nest(2, &scoped);
        if let Some(last) = self.last.get(part).filter(|last| last.template == template) {
            return Arc::clone(last);
        }
        template.bytes.shrink_to_fit();
        template.places.shrink_to_fit();
        let bytes = size_of::<Shape>() + template.bytes.len() + size_of_val(&*template.places) + 3 * ALLOCATION;
        Arc::new(Shape { template, _bytes: self.meter.add(bytes) })
    }
}

impl Gathered {
    /// Adds a `Metric` with these series.
    fn put(&mut self, metric: &Metric, series: &[(Labels, &Value)], start: u64) {
        let mut data = Template::default();
        for (labels, value) in series {
            let labels = labels.iter().copied();
            let point = match value {
                Value::Histogram(_) => histogram_point(labels, start),
                value => number_point(metric.kind, labels, value, start),
            };
            data.nest(1, &point);
            self.values(value);
        }
        self.points += series.len();
        let field = match metric.kind {
            Kind::Gauge => 5,
            Kind::Counter => {
                put_small(&mut data.bytes, 2, CUMULATIVE);
                put_small(&mut data.bytes, 3, 1);
                7
            }
            Kind::Histogram => {
                put_small(&mut data.bytes, 2, CUMULATIVE);
                9
            }
        };
        let mut message = Template::default();
        put_text(&mut message.bytes, 1, metric.name);
        put_text(&mut message.bytes, 2, metric.help);
        put_text(&mut message.bytes, 3, &unit(metric.unit));
        message.nest(field, &data);
        self.metrics.nest(2, &message);
    }

    fn values(&mut self, value: &Value) {
        match value {
            Value::Int(n) if i64::try_from(*n).is_ok() => self.values.push(*n),
            Value::Int(n) => self.values.push((*n as f64).to_bits()),
            Value::Float(v) => self.values.push(v.to_bits()),
            Value::Percent(v) => self.values.push(v.unwrap_or(f64::NAN).to_bits()),
            Value::Histogram(h) => {
                self.values.extend([h.count(), h.sum_seconds().to_bits()]);
                self.values.extend(h.buckets);
            }
        }
    }
}

/// A `NumberDataPoint`.
fn number_point<'a>(
    kind: Kind,
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    value: &Value,
    start: u64,
) -> Template {
    let mut point = Template::default();
    if kind == Kind::Counter {
        put_fixed64(&mut point.bytes, 2, start);
    }
    point.place(3, Fill::Time);
    match value {
        Value::Int(n) if i64::try_from(*n).is_ok() => point.place(6, Fill::Value),
        _ => {
            put_small(&mut point.bytes, 8, 0);
            point.place(4, Fill::Gauge);
        }
    }
    point.attributes(7, labels);
    point
}

/// A `HistogramDataPoint`.
fn histogram_point<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>, start: u64) -> Template {
    let mut point = Template::default();
    put_fixed64(&mut point.bytes, 2, start);
    point.place(3, Fill::Time);
    point.place(4, Fill::Value);
    point.place(5, Fill::Value);
    put_head(&mut point.bytes, 6, 8 * BUCKETS);
    for _ in 0..BUCKETS {
        point.places.push((point.bytes.len() as u32, Fill::Value));
        point.bytes.extend([0; 8]);
    }
    let bounds: Vec<u8> = (0..BUCKETS).filter_map(upper_bound_seconds).flat_map(f64::to_le_bytes).collect();
    put_head(&mut point.bytes, 7, bounds.len());
    point.bytes.extend(bounds);
    point.attributes(9, labels);
    point
}

/// A unit as UCUM has it; what is counted stands in braces.
fn unit(words: &str) -> String {
    match words.split(' ').next().unwrap_or_default() {
        "" => String::new(),
        "seconds" => "s".into(),
        "bytes" => "By".into(),
        "percent" => "%".into(),
        counted => format!("{{{counted}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::otlp::proto::metrics::{AggregationTemporality, NumberDataPoint, metric, number_data_point};
    use crate::export::otlp::proto::metrics_service::ExportMetricsServiceRequest;
    use crate::metrics::histogram::Histogram;
    use crate::metrics::own::{PROCESS_CPU, SCOPE_INFO};
    use crate::metrics::snapshot::{Family, Series};
    use crate::monitor::example;
    use crate::monitor::fadvise::{FADVISE_ADVICE, FADVISE_CALLS};
    use crate::monitor::reads::CACHE_HIT_RATE;
    use crate::monitor::reclaim::DIRECT_RECLAIM_SECONDS;
    use protobuf::Message;
    use std::time::Duration;

    fn series(labels: &[&str], value: Value) -> Series {
        Series { labels: labels.iter().map(|l| (*l).to_owned()).collect(), value }
    }

    fn small(hits: Option<f64>) -> Snapshot {
        let mut stalls = Histogram { sum_ns: 1_500_000_000, ..Default::default() };
        (stalls.buckets[0], stalls.buckets[25]) = (2, 4);
        let families = vec![
            Family::single(&FADVISE_CALLS.metric, Value::Int(7)),
            Family {
                metric: &FADVISE_ADVICE.metric,
                series: vec![series(&["normal"], Value::Int(u64::MAX)), series(&["random"], Value::Int(2))],
            },
            Family { metric: &CACHE_HIT_RATE.metric, series: vec![series(&[], Value::Percent(hits))] },
            Family { metric: &DIRECT_RECLAIM_SECONDS.metric, series: vec![series(&[], Value::Histogram(stalls))] },
            Family { metric: &PROCESS_CPU, series: vec![series(&[], Value::Float(0.1))] },
            Family { metric: &SCOPE_INFO, series: vec![series(&[""], Value::Int(1))] },
        ];
        let mut snapshot = Snapshot { families, files: None, ..example::snapshot() };
        snapshot.collected_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        snapshot.collected_instant = snapshot.started + Duration::from_secs(100);
        snapshot
    }

    fn converter(batch_size: usize) -> Converter {
        Converter::new(vec![("host.name".into(), "h".into())], batch_size, Meter::default())
    }

    fn parsed(collections: &[Collection]) -> ExportMetricsServiceRequest {
        ExportMetricsServiceRequest::parse_from_bytes(&request(collections.iter())).unwrap()
    }

    #[test]
    fn a_snapshot_is_a_request() {
        let request = parsed(&converter(500).collections(&small(Some(99.5))));
        let [of] = &request.resource_metrics[..] else { panic!("{request}") };
        assert_eq!(
            (&*of.resource.attributes[0].key, of.resource.attributes[0].value.string_value()),
            ("host.name", "h")
        );
        let [scope] = &of.scope_metrics[..] else { panic!("{request}") };
        assert_eq!((&*scope.scope.name, &*scope.scope.version), ("ebpf-sidecar", version::VERSION));
        let metrics = &scope.metrics;
        let names: Vec<_> = metrics.iter().map(|m| (&*m.name, &*m.unit)).collect();
        assert_eq!(
            names,
            [
                ("ebpf_fadvise_calls_total", "{calls}"),
                ("ebpf_fadvise_advice_total", "{calls}"),
                ("ebpf_cache_hit_rate_percent", "%"),
                ("ebpf_memory_direct_reclaim_seconds", "s"),
                ("process_cpu_seconds_total", "s"),
                ("ebpf_sidecar_scope_info", ""),
            ]
        );
        assert_eq!(metrics[0].description, FADVISE_CALLS.metric.help);
        let (start, time) = (999_900_000_000_000, 1_000_000_000_000_000);
        let number = |p: &NumberDataPoint| match p.value {
            Some(number_data_point::Value::AsInt(n)) => n as f64,
            Some(number_data_point::Value::AsDouble(v)) => v,
            _ => f64::NAN,
        };
        let sums: Vec<_> =
            metrics[1].sum().data_points.iter().map(|p| (p.attributes[0].value.string_value(), number(p))).collect();
        assert_eq!(sums, [("normal", u64::MAX as f64), ("random", 2.0)]);
        assert_eq!(metrics[1].sum().data_points[0].attributes[0].key, "advice");
        assert!(metrics[0].sum().is_monotonic && metrics[4].sum().is_monotonic);
        let cumulative = Ok(AggregationTemporality::AGGREGATION_TEMPORALITY_CUMULATIVE);
        assert_eq!(metrics[0].sum().aggregation_temporality.enum_value(), cumulative);
        let p = &metrics[0].sum().data_points[0];
        assert_eq!((number(p), p.start_time_unix_nano, p.time_unix_nano, p.flags), (7.0, start, time, 0));
        let p = &metrics[2].gauge().data_points[0];
        assert_eq!((number(p), p.start_time_unix_nano, p.time_unix_nano, p.flags), (99.5, 0, time, 0));
        assert_eq!(number(&metrics[4].sum().data_points[0]), 0.1);
        let Some(metric::Data::Histogram(h)) = &metrics[3].data else { panic!("{request}") };
        assert_eq!(h.aggregation_temporality.enum_value(), cumulative);
        let p = &h.data_points[0];
        assert_eq!((p.count, p.sum, p.start_time_unix_nano, p.time_unix_nano), (6, Some(1.5), start, time));
        assert_eq!((p.bucket_counts.len(), p.explicit_bounds.len()), (BUCKETS, BUCKETS - 1));
        assert_eq!((p.bucket_counts[0], p.bucket_counts[1], p.bucket_counts[25]), (2, 0, 4));
        assert_eq!(Some(p.explicit_bounds[0]), upper_bound_seconds(0));
        // A label that is there though it is empty.
        assert_eq!(metrics[5].gauge().data_points[0].attributes[0].key, "scope");
    }

    #[test]
    fn groups_of_files_have_the_names_of_their_patterns() {
        let snapshot = Snapshot { families: Vec::new(), ..example::snapshot() };
        let request = parsed(&converter(500).collections(&snapshot));
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        assert_eq!(metrics.iter().map(|m| &*m.name).collect::<Vec<_>>(), file_groups::METRICS.map(|m| m.name));
        let attributes = &metrics[0].sum().data_points[0].attributes;
        assert_eq!(attributes.iter().map(|a| &*a.key).collect::<Vec<_>>(), ["preset", "db", "kind", "cause"]);
    }

    #[test]
    fn nothing_to_divide_by_is_no_value() {
        let mut converter = converter(500);
        let none = parsed(&converter.collections(&small(None)));
        let p = &none.resource_metrics[0].scope_metrics[0].metrics[2].gauge().data_points[0];
        assert_eq!((p.flags, p.as_double()), (NO_VALUE.into(), 0.0));
        let some = converter.collections(&small(Some(1.0)));
        assert_eq!(parsed(&some).resource_metrics[0].scope_metrics[0].metrics[2].gauge().data_points[0].flags, 0);
    }

    #[test]
    fn the_start_stays_when_the_clock_is_set() {
        let mut converter = converter(500);
        converter.collections(&small(None));
        let start = |request: ExportMetricsServiceRequest| {
            request.resource_metrics[0].scope_metrics[0].metrics[0].sum().data_points[0].start_time_unix_nano
        };
        let mut snapshot = small(None);
        snapshot.collected_at += Duration::from_secs(3600);
        assert_eq!(start(parsed(&converter.collections(&snapshot))), 999_900_000_000_000);
        snapshot.collected_at -= Duration::from_secs(2 * 3600);
        let back = start(parsed(&converter.collections(&snapshot)));
        assert_eq!(back, (1_000_000 - 3600) * 1_000_000_000, "no later than the point");
    }

    #[test]
    fn collections_share_what_stays_and_are_split_by_the_batch() {
        let meter = Meter::default();
        let mut converter = Converter::new(Vec::new(), 3, meter.clone());
        let snapshot = example::snapshot();
        let first = converter.collections(&snapshot);
        let bytes = meter.bytes();
        let second = converter.collections(&snapshot);
        assert!(first.iter().zip(&second).all(|(a, b)| Arc::ptr_eq(&a.shape, &b.shape)));
        assert!((meter.bytes() - bytes) * 4 < bytes, "{bytes} bytes, then {}", meter.bytes() - bytes);
        let of_files = file_groups::series(snapshot.files.as_deref().unwrap());
        let all = of_files + snapshot.families.iter().map(|f| f.series.len()).sum::<usize>();
        assert_eq!(first.iter().map(Points::count).sum::<usize>(), all);
        assert!(first.len() == all.div_ceil(3) && first.iter().all(|c| c.count() <= 3));
        let apart: Vec<_> = parsed(&first).resource_metrics;
        let points = |of: &crate::export::otlp::proto::metrics::ResourceMetrics| {
            of.scope_metrics[0]
                .metrics
                .iter()
                .map(|m| m.sum().data_points.len() + m.gauge().data_points.len() + m.histogram().data_points.len())
                .sum::<usize>()
        };
        assert_eq!(apart.iter().map(points).sum::<usize>(), all);
        drop((first, second, converter));
        assert_eq!(meter.bytes(), 0);
    }
}
