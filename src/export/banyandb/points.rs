//! Snapshots as points, in a form that is small enough to keep an hour of it and fast to send: the tags of a series are
//! encoded once, as they go over the wire, and shared by all points of it; a point then is one number.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use protobuf::Message;

use super::proto::measure::DataPointValue;
use super::schema::{PROCESS_CALLS, Spec};
use crate::export::engine::meter::{Meter, Metered};
use crate::export::engine::wire::{field_len, put_head, put_varint, varint_len};
use crate::export::engine::{Chunk, Points};
use crate::host::time::timestamp_parts;
use crate::metrics::histogram::cumulative;
use crate::metrics::snapshot::{ALLOCATION, ProcessRow, Snapshot, Value};
use crate::monitor::file_groups;

/// Processes of a collection that have a series of their own; the rest is `other`.
const TOP_PROCESSES: usize = 20;
/// What stands for them in the tag `comm`.
const OTHER: &str = "other";

/// The tags of some series of a measure: of each, its `TagFamilyForWrite` with the field's head.
#[derive(Debug)]
pub struct SeriesList {
    encoded: Vec<u8>,
    ends: Vec<u32>,
    _bytes: Metered,
}

impl SeriesList {
    /// The tags of the series at `row`, as field 2 of a `DataPointValue`.
    pub fn tags(&self, row: usize) -> &[u8] {
        let end = |row: usize| self.ends[row] as usize;
        &self.encoded[if row == 0 { 0 } else { end(row - 1) }..end(row)]
    }
}

/// Points of one measure.
#[derive(Debug)]
pub struct Column {
    /// Which of the measures.
    pub measure: usize,
    /// Its series.
    pub series: Arc<SeriesList>,
    /// The row of the first value.
    pub first: usize,
    /// The values from there on; NaN is no point.
    pub values: Box<[f64]>,
}

/// Points of one collection, by measure: all of it, or as many as fit into a batch.
#[derive(Debug)]
pub struct Columns {
    /// Time of the collection, in milliseconds since 1970.
    pub time: i64,
    /// The same in nanoseconds: of two collections in a millisecond the later one counts.
    pub version: i64,
    /// The points of each measure.
    pub columns: Vec<Column>,
    points: usize,
    bytes: Metered,
}

impl Points for Columns {
    fn count(&self) -> usize {
        self.points
    }
}

impl Columns {
    fn new(time: i64, version: i64, mut columns: Vec<Column>, meter: &Meter) -> Self {
        columns.shrink_to_fit();
        let values: usize = columns.iter().map(|c| size_of_val(&*c.values)).sum();
        let bytes = size_of::<Chunk<Self>>() + columns.len() * (size_of::<Column>() + ALLOCATION) + values + ALLOCATION;
        let points = columns.iter().flat_map(|c| &*c.values).filter(|v| !v.is_nan()).count();
        Self { time, version, columns, points, bytes: meter.add(bytes) }
    }

    /// Column and row of each point.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        self.columns.iter().enumerate().flat_map(|(i, column)| {
            let rows = column.values.iter().enumerate().filter(|(_, v)| !v.is_nan());
            rows.map(move |(row, _)| (i, row))
        })
    }

    /// Gives up the point at `row` of a column. Returns its value.
    pub fn give_up(&mut self, column: usize, row: usize) -> f64 {
        let value = &mut self.columns[column].values[row];
        self.points -= usize::from(!value.is_nan());
        std::mem::replace(value, f64::NAN)
    }

    /// Takes these points out, given by column and row in their order.
    pub fn take(&mut self, places: &[(usize, usize)]) -> Self {
        let mut columns = Vec::new();
        for same in places.chunk_by(|a, b| a.0 == b.0) {
            let (column, first) = same[0];
            let last = same[same.len() - 1].1;
            let mut values = vec![f64::NAN; last - first + 1].into_boxed_slice();
            for &(column, row) in same {
                values[row - first] = self.give_up(column, row);
            }
            let from = &self.columns[column];
            let (measure, series) = (from.measure, Arc::clone(&from.series));
            columns.push(Column { measure, series, first: from.first + first, values });
        }
        Self::new(self.time, self.version, columns, self.bytes.meter())
    }
}

/// Turns snapshots into points.
pub struct Converter {
    node: String,
    specs: Arc<[Spec]>,
    by_name: HashMap<String, usize>,
    batch_size: usize,
    /// The series of each measure as last seen, to be shared.
    last: Vec<Option<Arc<SeriesList>>>,
    meter: Meter,
}

/// The series of one measure while they are gathered.
#[derive(Default)]
struct Gathered {
    encoded: Vec<u8>,
    ends: Vec<u32>,
    values: Vec<f64>,
}

impl Gathered {
    fn push<'a>(&mut self, tags: impl Iterator<Item = &'a str> + Clone, value: f64) {
        put_tags(&mut self.encoded, tags);
        // 4 GiB of tags in one collection: there is no memory for so many processes' rows.
        self.ends.push(u32::try_from(self.encoded.len()).unwrap_or(u32::MAX));
        self.values.push(value);
    }
}

impl Converter {
    /// For points of this node, in chunks of at most `batch_size` series.
    pub fn new(node: String, specs: Arc<[Spec]>, batch_size: usize, meter: Meter) -> Self {
        let by_name = specs.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let last = specs.iter().map(|_| None).collect();
        Self { node, specs, by_name, batch_size, last, meter }
    }

    /// The points of `snapshot`; none if its time is before 1970.
    pub fn chunks(&mut self, snapshot: &Snapshot) -> Vec<Columns> {
        let Ok(since) = snapshot.collected_at.duration_since(SystemTime::UNIX_EPOCH) else { return Vec::new() };
        let (Ok(time), Ok(version)) = (i64::try_from(since.as_millis()), i64::try_from(since.as_nanos())) else {
            return Vec::new();
        };
        let gathered = self.gather(snapshot);
        let mut chunks = Vec::new();
        let mut columns = Vec::new();
        let mut room = self.batch_size;
        for (measure, gathered) in gathered.into_iter().enumerate() {
            let Gathered { encoded, ends, values } = gathered;
            if values.is_empty() {
                self.last[measure] = None;
                continue;
            }
            let series = self.shared(measure, encoded, ends);
            let mut first = 0;
            while first < values.len() {
                let n = room.min(values.len() - first);
                let part = values[first..first + n].into();
                columns.push(Column { measure, series: Arc::clone(&series), first, values: part });
                first += n;
                room -= n;
                if room == 0 {
                    chunks.push(Columns::new(time, version, std::mem::take(&mut columns), &self.meter));
                    room = self.batch_size;
                }
            }
        }
        if !columns.is_empty() {
            chunks.push(Columns::new(time, version, columns, &self.meter));
        }
        chunks
    }

    /// These series, or the same as they were the last time.
    fn shared(&mut self, measure: usize, mut encoded: Vec<u8>, mut ends: Vec<u32>) -> Arc<SeriesList> {
        if let Some(last) = self.last[measure].as_ref().filter(|l| l.encoded == encoded && l.ends == ends) {
            return Arc::clone(last);
        }
        encoded.shrink_to_fit();
        ends.shrink_to_fit();
        let bytes = size_of::<SeriesList>() + encoded.len() + size_of_val(&*ends) + 3 * ALLOCATION;
        let list = Arc::new(SeriesList { encoded, ends, _bytes: self.meter.add(bytes) });
        self.last[measure] = Some(Arc::clone(&list));
        list
    }

    /// The series of each measure.
    fn gather(&self, snapshot: &Snapshot) -> Vec<Gathered> {
        let mut all: Vec<Gathered> = self.specs.iter().map(|_| Gathered::default()).collect();
        let base = [self.node.as_str(), snapshot.scope.as_str()];
        let mut put = |name: &str, labels: &[&str], more: Option<&str>, value: f64| {
            // Every metric of the catalogue is a measure, but for that of the scope.
            let Some(&measure) = self.by_name.get(name) else { return };
            all[measure].push(base.iter().copied().chain(labels.iter().copied()).chain(more), value);
        };
        for family in &snapshot.families {
            let name = family.metric.name;
            let parts = ["bucket", "sum", "count"].map(|part| format!("{name}_{part}"));
            let mut labels = Vec::new();
            for series in &family.series {
                labels.clear();
                labels.extend(series.labels.iter().map(String::as_str));
                match &series.value {
                    Value::Int(v) => put(name, &labels, None, *v as f64),
                    Value::Float(v) => put(name, &labels, None, *v),
                    Value::Percent(v) => put(name, &labels, None, v.unwrap_or(f64::NAN)),
                    Value::Histogram(h) => {
                        for (le, count) in cumulative(h) {
                            put(&parts[0], &labels, Some(&le), count as f64);
                        }
                        put(&parts[1], &labels, None, h.sum_seconds());
                        put(&parts[2], &labels, None, h.count() as f64);
                    }
                }
            }
        }
        for family in snapshot.files.iter().flat_map(|files| file_groups::families(files)) {
            for (labels, value) in &family.series {
                let (preset, group, cause) = tags_of_group(labels);
                let value = match value {
                    Value::Int(n) => *n as f64,
                    Value::Float(v) => *v,
                    _ => continue, // there is none
                };
                put(family.metric.name, &[preset, &group], cause, value);
            }
        }
        for (comm, calls) in snapshot.processes.iter().flat_map(|rows| top(rows)) {
            put(PROCESS_CALLS, &[], Some(comm), calls as f64);
        }
        all
    }
}

/// Of a series of a group of files: whose pattern it is, `name=value,…`, and the cause.
fn tags_of_group<'a>(labels: &[(&'a str, &'a str)]) -> (&'a str, String, Option<&'a str>) {
    let value = |wanted: &str| labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let names = labels.iter().filter(|(name, _)| ![file_groups::PRESET, "cause"].contains(name));
    let group: Vec<String> = names.map(|(name, value)| format!("{name}={value}")).collect();
    let preset = value(file_groups::PRESET).unwrap_or_default();
    // A pattern without names takes all of them into one.
    (preset, if group.is_empty() { preset.to_owned() } else { group.join(",") }, value("cause"))
}

/// Calls by name of the process, most first, and of all others.
fn top(rows: &[ProcessRow]) -> Vec<(&str, u64)> {
    let mut by_comm: HashMap<&str, u64> = HashMap::new();
    for row in rows {
        // The overflow row is of many processes.
        *by_comm.entry(if row.pid == 0 { OTHER } else { &row.comm }).or_default() += row.calls;
    }
    let mut other = by_comm.remove(OTHER);
    let mut top: Vec<_> = by_comm.into_iter().collect();
    top.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    for (_, calls) in top.drain(TOP_PROCESSES.min(top.len())..) {
        *other.get_or_insert(0) += calls;
    }
    // The same order while the names are the same, so that their series can be shared.
    top.sort_unstable();
    top.extend(other.map(|calls| (OTHER, calls)));
    top
}

// ---- messages ----

/// `DataPointValue.tag_families`, with one family of these tags.
fn put_tags<'a>(out: &mut Vec<u8>, tags: impl Iterator<Item = &'a str> + Clone) {
    // TagFamilyForWrite.tags of TagValue.str of Str.value
    let value_len = |tag: &str| field_len(field_len(tag.len()));
    put_head(out, 2, tags.clone().map(|t| field_len(value_len(t))).sum());
    for tag in tags {
        put_head(out, 1, value_len(tag));
        put_head(out, 2, field_len(tag.len()));
        put_head(out, 1, tag.len());
        out.extend_from_slice(tag.as_bytes());
    }
}

/// The values in tags as [`SeriesList::tags`] gives them.
pub fn tag_values(encoded: &[u8]) -> Vec<String> {
    // As field 2 of a data point, which is what they are.
    let point = DataPointValue::parse_from_bytes(encoded).unwrap_or_default();
    point.tag_families.iter().flat_map(|f| &f.tags).map(|t| t.str().value.clone()).collect()
}

/// `WriteRequest`s one after the other, each with its end.
#[derive(Debug, Default)]
pub struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    point: Vec<u8>,
}

impl Encoded {
    /// Adds the point at `row` of `column`, with `metadata` (encoded) if the stream's measure changes. Message ids
    /// count from 1.
    pub fn push(&mut self, chunk: &Columns, column: &Column, row: usize, metadata: Option<&[u8]>) {
        let point = &mut self.point;
        point.clear();
        let (seconds, nanos) = timestamp_parts(chunk.time);
        let (seconds, nanos) = (seconds as u64, nanos as u64);
        put_head(point, 1, 2 + varint_len(seconds as usize) + varint_len(nanos as usize));
        point.push(1 << 3);
        put_varint(point, seconds);
        point.push(2 << 3);
        put_varint(point, nanos);
        point.extend_from_slice(column.series.tags(column.first + row));
        // FieldValue.float of Float.value
        put_head(point, 3, field_len(9));
        put_head(point, 5, 9);
        point.push(1 << 3 | 1);
        point.extend_from_slice(&column.values[row].to_le_bytes());
        point.push(4 << 3);
        put_varint(point, chunk.version as u64);

        let out = &mut self.bytes;
        if let Some(metadata) = metadata {
            put_head(out, 1, metadata.len());
            out.extend_from_slice(metadata);
        }
        put_head(out, 2, point.len());
        out.extend_from_slice(point);
        out.push(3 << 3);
        put_varint(out, self.ends.len() as u64 + 1);
        self.ends.push(out.len());
    }

    /// The messages.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let start = |i: usize| if i == 0 { 0 } else { self.ends[i - 1] };
        let ranges = self.ends.iter().enumerate().map(move |(i, end)| Range { start: start(i), end: *end });
        ranges.map(|r| &self.bytes[r])
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::measure::WriteRequest;
    use super::super::schema::{metadata, specs};
    use super::*;
    use crate::export::prometheus;
    use crate::monitor::example;
    use std::collections::BTreeMap;

    fn converter(batch_size: usize) -> (Converter, Meter) {
        let meter = Meter::default();
        (Converter::new("n1".into(), specs().into(), batch_size, meter.clone()), meter)
    }

    /// Name, tags and value of each point, as a server decodes it.
    fn decoded(chunks: &[Columns]) -> Vec<(String, Vec<String>, f64)> {
        let specs = specs();
        let mut encoded = Encoded::default();
        for chunk in chunks {
            for column in &chunk.columns {
                let meta = metadata("g", &specs[column.measure].name, 5).write_to_bytes().unwrap();
                for row in (0..column.values.len()).filter(|r| !column.values[*r].is_nan()) {
                    encoded.push(chunk, column, row, Some(&meta));
                }
            }
        }
        let mut points = Vec::new();
        for (i, bytes) in encoded.messages().enumerate() {
            let request = WriteRequest::parse_from_bytes(bytes).unwrap();
            if request.data_point.fields[0].float().value != 0.0 {
                // A zero is written out here, which the generated code leaves out.
                assert_eq!(request.write_to_bytes().unwrap(), bytes, "nothing but what the contract has");
            }
            assert_eq!(request.message_id, i as u64 + 1);
            assert_eq!((request.metadata.group.as_str(), request.metadata.mod_revision), ("g", 5));
            let point = &request.data_point;
            assert_eq!((point.timestamp.seconds, point.timestamp.nanos), (1_700_000_000, 123_000_000));
            assert_eq!(point.version, 1_700_000_000_123_000_000);
            assert_eq!((point.tag_families.len(), point.fields.len()), (1, 1));
            let tags = point.tag_families[0].tags.iter().map(|t| t.str().value.clone()).collect();
            points.push((request.metadata.name.clone(), tags, point.fields[0].float().value));
        }
        points
    }

    #[test]
    fn the_points_are_the_samples_of_prometheus() {
        let snapshot = example::snapshot();
        let (mut converter, _) = converter(1000);
        let specs = specs();
        let mut samples: BTreeMap<String, f64> = BTreeMap::new();
        for line in prometheus::text(&snapshot).lines().filter(|l| !l.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            // The scope is told by each.
            if !value.is_nan() && !series.starts_with("ebpf_sidecar_scope_info") {
                samples.insert(series.into(), value);
            }
        }
        let mut processes = Vec::new();
        for (name, tags, value) in decoded(&converter.chunks(&snapshot)) {
            assert_eq!(tags[..2], ["n1", "host"]);
            if name == PROCESS_CALLS {
                processes.push((tags[2].clone(), value));
                continue;
            }
            if let Some(metric) = file_groups::METRICS.into_iter().find(|m| m.name == name) {
                let labels = |labels: &[(&str, &str)]| {
                    let (preset, group, cause) = tags_of_group(labels);
                    [preset, &group].into_iter().chain(cause).map(str::to_owned).collect::<Vec<_>>()
                };
                let all = file_groups::families(snapshot.files.as_deref().unwrap());
                let family = all.iter().find(|f| f.metric.name == metric.name).unwrap();
                let (theirs, _) = family.series.iter().find(|(l, _)| labels(l) == tags[2..]).unwrap();
                let quoted = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let theirs: Vec<String> = theirs.iter().map(|(n, v)| format!("{n}=\"{}\"", quoted(v))).collect();
                let series = format!("{name}{{{}}}", theirs.join(","));
                assert_eq!(samples.remove(&series), Some(value), "{series}");
                continue;
            }
            let names = &specs.iter().find(|s| s.name == name).unwrap().tags[2..];
            let labels: Vec<String> = names.iter().zip(&tags[2..]).map(|(n, v)| format!("{n}=\"{v}\"")).collect();
            let labels = labels.join(",");
            let series = if labels.is_empty() { name } else { format!("{name}{{{labels}}}") };
            assert_eq!(samples.remove(&series), Some(value), "{series}");
        }
        assert!(samples.is_empty(), "not among the points: {samples:?}");
        assert_eq!(processes, [("banyandb \"hot\"\n\\".replace("banyandb", "banyand"), 1000.0), ("other".into(), 4.0)]);
    }

    #[test]
    fn a_collection_is_cut_into_batches_without_losing_a_point() {
        let snapshot = example::snapshot();
        let whole = decoded(&converter(100_000).0.chunks(&snapshot));
        for size in [1, 2, 7, 26, 27, 28, whole.len(), whole.len() + 1] {
            let chunks = converter(size).0.chunks(&snapshot);
            assert!(chunks.iter().all(|c| (1..=size).contains(&c.columns.iter().map(|c| c.values.len()).sum())));
            assert_eq!(decoded(&chunks), whole);
        }
    }

    #[test]
    fn points_that_are_taken_out_are_there_once_as_they_were() {
        let snapshot = example::snapshot();
        let whole = decoded(&converter(1000).0.chunks(&snapshot));
        for every in [1, 2, 3, 7, 1000] {
            let (mut converter, meter) = converter(1000);
            let mut chunks = converter.chunks(&snapshot);
            let places: Vec<_> = chunks[0].places().skip(every / 2).step_by(every).collect();
            let taken = chunks[0].take(&places);
            assert_eq!((taken.count(), chunks[0].count()), (places.len(), whole.len() - places.len()));
            let (left, right) = (decoded(&chunks), decoded(&[taken]));
            assert!(left.iter().all(|p| !right.contains(p)));
            assert!(whole.iter().all(|p| left.contains(p) || right.contains(p)));
            drop((chunks, converter));
            assert_eq!(meter.bytes(), 0);
        }
    }

    #[test]
    fn series_are_shared_while_they_stay_the_same_and_bytes_are_counted() {
        let mut snapshot = example::snapshot();
        let (mut converter, meter) = converter(1000);
        let first = converter.chunks(&snapshot);
        let bytes = meter.bytes();
        snapshot.processes.as_mut().unwrap()[0].calls += 1;
        let second = converter.chunks(&snapshot);
        let more = meter.bytes() - bytes;
        assert!(more < bytes / 2 && more > second[0].count() * 8, "{more} of {bytes}");
        for (a, b) in first[0].columns.iter().zip(&second[0].columns) {
            assert!(Arc::ptr_eq(&a.series, &b.series));
        }
        snapshot.scope = "comm:x".into();
        let third = converter.chunks(&snapshot);
        assert!(!Arc::ptr_eq(&first[0].columns[0].series, &third[0].columns[0].series));
        let mut third = third;
        let points = third[0].count();
        third[0].give_up(0, 0);
        third[0].give_up(0, 0);
        assert_eq!(third[0].count(), points - 1);
        drop((first, second, third, converter));
        assert_eq!(meter.bytes(), 0);
    }

    #[test]
    fn the_top_processes_by_name_and_the_rest() {
        let row = |pid, comm: &str, calls| ProcessRow { pid, comm: comm.into(), calls, ..Default::default() };
        let mut processes: Vec<_> = (1..=30).map(|n| row(n, &format!("p{n:02}"), u64::from(n))).collect();
        processes.extend([row(40, "p30", 5), row(41, "other", 7), row(0, "overflow", 100)]);
        let top = top(&processes);
        assert_eq!(top.len(), 21);
        assert_eq!(top[0], ("p11", 11));
        assert_eq!(top[19], ("p30", 35));
        assert_eq!(top[20], ("other", (1..=10).sum::<u64>() + 107));
    }

    #[test]
    fn lengths_are_as_written() {
        for n in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let mut out = Vec::new();
            put_varint(&mut out, n as u64);
            assert_eq!(out.len(), varint_len(n));
        }
    }
}
