//! One Write stream, and what its answers mean for each point.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use grpcio::{Error, RpcStatusCode};
use protobuf::well_known_types::timestamp::Timestamp;

use super::points::{self, Columns, Encoded};
use super::proto::measure::{QueryRequest, QueryResponse, query_request};
use super::proto::model::{Status, TagProjection, TimeRange, tag_projection};
use super::schema::{self, Spec};
use super::write::{Written, write};
use super::{Alone, BanyanDb, Schema, Session, State, method};
use crate::export::engine::link::{Link, is, is_out_of_reach, text};
use crate::export::engine::{Again, Chunk, End, Intake};
use crate::host::time::timestamp_parts;
use crate::metrics::export::BANYANDB;

/// Streams that the server ends before their time, with less than this between them, after which it is looked for the
/// measures that make it do so. That others succeed meanwhile means nothing: they may have had no points of those.
const STREAMS_ENDED: u32 = 3;
const ENDED_APART: Duration = Duration::from_secs(120);
/// Answers of INTERNAL_ERROR in a row after which a measure's schema is looked at again.
const INTERNAL_ERRORS: u32 = 3;
/// How long it is waited for the word that a connection was lost, when a stream has ended on it.
const LOST: Duration = Duration::from_millis(200);
/// Time between two attempts at a measure for which the server drops connections: twice as long each time, up to this.
const ALONE_MAX: Duration = Duration::from_secs(320);
/// Time between two attempts to have a measure ready, or to send points that end their stream,
const RETRY: Duration = Duration::from_secs(5);
/// and how long the others wait for that.
const PATIENCE: Duration = Duration::from_secs(1);
/// Why a point whose stream the server ends is sent again.
const ENDED: &str = "stream_ended";
/// Measures that a line of the log names.
const NAMED: usize = 3;
/// Points that a query for one point may find beside it, of other series and agents.
const QUERY_LIMIT: u32 = 100_000;

/// A point of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Point {
    chunk: usize,
    column: usize,
    row: usize,
}

type Batch<'a> = &'a mut [Chunk<Columns>];

impl BanyanDb {
    /// Writes a batch. Returns what has to be written again.
    pub(super) fn write(
        &mut self,
        intake: &mut Intake<Columns>,
        session: &mut Session,
        batch: Batch,
    ) -> Result<Again<Columns>, End> {
        let Session { link, schema } = session;
        let due = schema.measures.iter().enumerate().filter(|(_, m)| match &m.state {
            State::NotYet(_, tried) => tried.elapsed() >= RETRY,
            _ => false,
        });
        let due: Vec<usize> = due.map(|(i, _)| i).filter(|i| has(batch, *i)).collect();
        self.prepare_again(intake, link, schema, &due, PATIENCE)?;
        give_up_unwritable(schema, batch);

        let (mut points, mut judged) = (Vec::new(), Judged::default());
        for (chunk, c) in batch.iter().enumerate() {
            for (column, row) in c.points.places() {
                let p = Point { chunk, column, row };
                let measure = c.points.columns[column].measure;
                match &schema.measures[measure].state {
                    State::NotYet(why, _) => {
                        judged.again(p, measure, "schema_not_applied");
                        judged.why.get_or_insert_with(|| why.clone());
                    }
                    _ if self.alone.get(&measure).is_some_and(|alone| alone.tried.elapsed() < alone.wait) => {
                        judged.again(p, measure, ENDED);
                    }
                    _ => points.push(p),
                }
            }
        }
        if !points.is_empty() {
            let answered = self.write_parts(intake, link, schema, batch, points, &mut judged)?;
            self.judge(intake, link, schema, batch, answered.into_iter(), &mut judged)?;
        }
        let of = self.names(&judged);
        Ok(Again { chunks: take(batch, judged.again), reasons: judged.reasons, of, refused: None })
    }

    /// Writes these points, in one stream unless the server keeps ending it: then by ever smaller parts, until those are left
    /// that contain a single measure. Returns what is answered to each; what ends its stream is put aside. Where a part takes
    /// the connection with it the search goes on with the next one.
    fn write_parts(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &Schema,
        batch: Batch,
        points: Vec<Point>,
        judged: &mut Judged,
    ) -> Result<Vec<(Point, Option<Status>)>, End> {
        let measure_of = |p: &Point| batch[p.chunk].points.columns[p.column].measure;
        let (alone, mut rest): (Vec<Point>, Vec<Point>) =
            points.into_iter().partition(|p| self.alone.contains_key(&measure_of(p)));
        if self.suspects.is_empty() {
            self.taken = false;
        }
        // The last is sent first.
        let mut parts = by_measure(alone, measure_of);
        for suspects in self.suspects.iter().rev() {
            let (part, others) = rest.into_iter().partition(|p| suspects.contains(&measure_of(p)));
            parts.push(part);
            rest = others;
        }
        parts.push(rest);
        parts.retain(|part| !part.is_empty());
        let (mut answered, mut ended) = (Vec::new(), Vec::new());
        while let Some(part) = parts.pop() {
            match self.statuses(intake, link, schema, batch, &part)? {
                Ok(statuses) => {
                    self.taken = true;
                    for p in &part {
                        self.alone.remove(&measure_of(p));
                    }
                    answered.extend(part.into_iter().zip(statuses));
                }
                Err(why) => {
                    let mut measures = by_measure(part, measure_of);
                    let known = measures.iter().all(|p| self.alone.contains_key(&measure_of(&p[0])));
                    if !known {
                        let again = self.ended_at.is_some_and(|at| at.elapsed() < ENDED_APART);
                        self.streams_ended = if again { self.streams_ended.saturating_add(1) } else { 1 };
                        self.ended_at = Some(Instant::now());
                        if self.streams_ended < STREAMS_ENDED {
                            return Err(End::Lost(why));
                        }
                    }
                    let lost = intake.happens(link.lost(), LOST);
                    let second = measures.split_off(measures.len() / 2);
                    self.suspect([&measures, &second].map(|half| half.iter().map(|p| measure_of(&p[0])).collect()));
                    if measures.is_empty() {
                        // If nothing was taken it may be the server.
                        if self.taken || known {
                            self.put_alone(measure_of(&second[0][0]), lost);
                        }
                        ended.push((second.concat(), why.clone()));
                    } else {
                        parts.extend([second.concat(), measures.concat()]);
                    }
                    if lost {
                        return Err(End::Lost(why));
                    }
                }
            }
        }
        for (points, why) in ended {
            let measure = measure_of(&points[0]);
            if !self.alone.contains_key(&measure) {
                if !self.taken {
                    // No measure is to blame, then.
                    return Err(End::Lost(why));
                }
                self.put_alone(measure, false);
            }
            points.into_iter().for_each(|p| judged.again(p, measure, ENDED));
            judged.why.get_or_insert(why);
        }
        self.suspects.clear();
        Ok(answered)
    }

    /// A part has ended its stream: from now on its halves are sent by themselves. A single measure comes after all others.
    fn suspect(&mut self, halves: [BTreeSet<usize>; 2]) {
        for suspects in &mut self.suspects {
            suspects.retain(|measure| !halves.iter().any(|half| half.contains(measure)));
        }
        let at = if halves[0].is_empty() { self.suspects.len() } else { 0 };
        self.suspects.splice(at..at, halves);
        self.suspects.retain(|suspects| !suspects.is_empty());
    }

    /// The points of this measure end their stream, or even the connection.
    fn put_alone(&mut self, measure: usize, lost: bool) {
        self.suspects.retain(|suspects| !suspects.contains(&measure));
        let tried = Instant::now();
        let wait = self.alone.get(&measure).map_or(RETRY, |before| (before.wait * 2).min(ALONE_MAX));
        self.alone.insert(measure, Alone { tried, wait: if lost { wait } else { RETRY } });
    }

    /// Writes these points in one stream. Returns what is answered to each, or why the server has ended it before.
    fn statuses(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &Schema,
        batch: &[Chunk<Columns>],
        points: &[Point],
    ) -> Result<Result<Vec<Option<Status>>, String>, End> {
        let mut encoded = Encoded::default();
        let mut last = None;
        for p in points {
            let chunk = &batch[p.chunk].points;
            let column = &chunk.columns[p.column];
            let metadata = match &schema.measures[column.measure].state {
                State::Ready(metadata) if last != Some(column.measure) => Some(metadata.as_slice()),
                _ => None,
            };
            encoded.push(chunk, column, p.row, metadata);
            last = Some(column.measure);
        }
        let receiver = write(link, encoded.messages(), self.option(intake)?);
        drop(encoded);
        let Written { answers, failure } = intake.answer("Write", &receiver)?;
        // What was answered before a failure may have gone with the server.
        match failure {
            Some(e) if is_no_answer(&e) => return Err(End::Lost(text("Write", &e))),
            Some(e) => return Ok(Err(text("Write", &e))),
            None => {}
        }
        let mut statuses = vec![None; points.len()];
        for (id, status) in answers {
            let slot = usize::try_from(id).ok().and_then(|id| statuses.get_mut(id.checked_sub(1)?));
            if let Some(slot) = slot {
                *slot = Some(status);
            }
        }
        Ok(Ok(statuses))
    }

    /// What becomes of each point, by its status.
    fn judge(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        batch: Batch,
        statuses: impl Iterator<Item = (Point, Option<Status>)>,
        judged: &mut Judged,
    ) -> Result<(), End> {
        let mut accepted = Vec::new();
        let (mut unknown, mut renewed, mut internal) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut refused: HashMap<(usize, Status), usize> = HashMap::new();
        for (p, status) in statuses {
            let chunk = &mut batch[p.chunk].points;
            let measure = chunk.columns[p.column].measure;
            let reason = match status.unwrap_or_default() {
                Status::STATUS_SUCCEED => {
                    schema.measures[measure].internal_errors = 0;
                    accepted.push(p);
                    continue;
                }
                s @ (Status::STATUS_INVALID_TIMESTAMP
                | Status::STATUS_METADATA_REQUIRED
                | Status::STATUS_VERSION_UNSUPPORTED) => {
                    *refused.entry((measure, s)).or_default() += 1;
                    BANYANDB.dropped("refused", 1);
                    chunk.give_up(p.column, p.row);
                    continue;
                }
                // By its contract this version is still served.
                Status::STATUS_VERSION_DEPRECATED => "version_deprecated",
                Status::STATUS_NOT_FOUND => {
                    unknown.insert(measure);
                    "not_found"
                }
                Status::STATUS_EXPIRED_SCHEMA => {
                    renewed.insert(measure);
                    "expired_schema"
                }
                Status::STATUS_SCHEMA_NOT_APPLIED => "schema_not_applied",
                Status::STATUS_DISK_FULL => "disk_full",
                Status::STATUS_INTERNAL_ERROR => {
                    internal.insert(measure);
                    "internal_error"
                }
                Status::STATUS_UNSPECIFIED => "no_answer",
            };
            judged.again(p, measure, reason);
        }
        for ((measure, status), n) in refused {
            let measure = &self.specs[measure].name;
            log::warn!("BanyanDB refuses {n} points of {measure}, which are dropped: {status:?}");
        }
        for p in self.not_stored(intake, link, schema, batch, &accepted)? {
            judged.again(p, batch[p.chunk].points.columns[p.column].measure, "schema_not_applied");
        }
        // A server that does not check revisions says INTERNAL_ERROR of a measure that it does not know.
        for measure in internal {
            let errors = &mut schema.measures[measure].internal_errors;
            *errors += 1;
            if *errors >= INTERNAL_ERRORS {
                unknown.insert(measure);
            }
        }
        if !unknown.is_empty() {
            // Without the group no measure can be created.
            self.prepare_group(intake, link)?;
        }
        renewed.extend(unknown);
        let renewed: Vec<usize> = renewed.into_iter().collect();
        self.prepare_again(intake, link, schema, &renewed, PATIENCE)
    }

    /// What failed, for the log.
    fn names(&self, judged: &Judged) -> String {
        let names: Vec<&str> = judged.measures.iter().take(NAMED).map(|m| self.specs[*m].name.as_str()).collect();
        let more = judged.measures.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let why = judged.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        format!("{}{more}{why}", names.join(", "))
    }

    /// Of these accepted points, those of measures that the server does not store yet, although it says so: asks for
    /// the first of each measure of which nothing is known.
    fn not_stored(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        batch: &[Chunk<Columns>],
        accepted: &[Point],
    ) -> Result<Vec<Point>, End> {
        let mut lost = Vec::new();
        let mut rest = accepted;
        while let Some(&p) = rest.first() {
            let chunk = &batch[p.chunk].points;
            let (time, version) = (chunk.time, chunk.version);
            let column = &chunk.columns[p.column];
            let measure = column.measure;
            let same = rest.iter().take_while(|q| (q.chunk, q.column) == (p.chunk, p.column)).count();
            let (these, others) = rest.split_at(same);
            rest = others;
            if schema.measures[measure].confirmed {
                continue;
            }
            let tags = points::tag_values(column.series.tags(column.first + p.row));
            let request = self.query(&self.specs[measure], time);
            let answer = self.call::<_, QueryResponse>(intake, link, method::QUERY, &request)?;
            let answer = match answer {
                Err(e) if is_out_of_reach(&e) => return Err(End::Lost(text("looking for a point", &e))),
                // Not of this measure, then.
                answer => answer.unwrap_or_default(),
            };
            let found = answer.data_points.iter().any(|d| {
                let found = d.tag_families.iter().flat_map(|f| &f.tags).map(|t| &t.value.str().value);
                d.version >= version && found.eq(&tags)
            });
            if found {
                schema.measures[measure].confirmed = true;
            } else {
                lost.extend_from_slice(these);
            }
        }
        Ok(lost)
    }

    /// Asks for the points of a measure at this time.
    fn query(&self, spec: &Spec, time: i64) -> QueryRequest {
        let timestamp = |ms: i64| {
            let (seconds, nanos) = timestamp_parts(ms);
            Timestamp { seconds, nanos, ..Default::default() }
        };
        let range = TimeRange {
            begin: Some(timestamp(time)).into(),
            end: Some(timestamp(time + 1)).into(),
            ..Default::default()
        };
        let family = tag_projection::TagFamily {
            name: schema::FAMILY.into(),
            tags: spec.tags.iter().map(|t| (*t).into()).collect(),
            ..Default::default()
        };
        let tags = TagProjection { tag_families: vec![family], ..Default::default() };
        let fields = query_request::FieldProjection { names: vec![schema::FIELD.into()], ..Default::default() };
        QueryRequest {
            groups: vec![self.config.group.clone()],
            name: spec.name.clone(),
            time_range: Some(range).into(),
            tag_projection: Some(tags).into(),
            field_projection: Some(fields).into(),
            limit: QUERY_LIMIT,
            ..Default::default()
        }
    }
}

/// What has to be written again.
#[derive(Default)]
struct Judged {
    again: Vec<Point>,
    /// Why, with the number of points.
    reasons: Vec<(&'static str, usize)>,
    /// Of these measures.
    measures: BTreeSet<usize>,
    /// Why one of them is not ready.
    why: Option<String>,
}

impl Judged {
    fn again(&mut self, p: Point, measure: usize, reason: &'static str) {
        match self.reasons.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, n)) => *n += 1,
            None => self.reasons.push((reason, 1)),
        }
        self.measures.insert(measure);
        self.again.push(p);
    }
}

/// These points, one list for each measure.
fn by_measure(points: Vec<Point>, measure_of: impl Fn(&Point) -> usize) -> Vec<Vec<Point>> {
    let mut lists: BTreeMap<usize, Vec<Point>> = BTreeMap::new();
    points.into_iter().for_each(|p| lists.entry(measure_of(&p)).or_default().push(p));
    lists.into_values().collect()
}

/// Whether a stream has failed by itself, or for what it would for any points.
fn is_no_answer(e: &Error) -> bool {
    let codes = [RpcStatusCode::DEADLINE_EXCEEDED, RpcStatusCode::UNAUTHENTICATED];
    !matches!(e, Error::RpcFailure(_)) || codes.into_iter().any(|code| is(e, code))
}

/// Whether the batch has points of a measure.
fn has(batch: &[Chunk<Columns>], measure: usize) -> bool {
    batch.iter().flat_map(|c| &c.points.columns).any(|c| c.measure == measure)
}

/// Gives up the points of measures that are something else on the server.
fn give_up_unwritable(schema: &Schema, batch: Batch) {
    let mut given_up = 0;
    for chunk in batch.iter_mut().map(|c| &mut c.points) {
        let places: Vec<_> = chunk.places().collect();
        for (column, row) in places {
            if matches!(schema.measures[chunk.columns[column].measure].state, State::Different) {
                given_up += 1;
                chunk.give_up(column, row);
            }
        }
    }
    BANYANDB.dropped("schema", given_up);
}

/// Takes these points out of the batch, in the order in which they stand there.
fn take(batch: Batch, mut points: Vec<Point>) -> Vec<Chunk<Columns>> {
    points.sort_unstable_by_key(|p| (p.chunk, p.column, p.row));
    let of_chunk = points.chunk_by(|a, b| a.chunk == b.chunk).map(|same| {
        let places: Vec<_> = same.iter().map(|p| (p.column, p.row)).collect();
        let chunk = &mut batch[same[0].chunk];
        let taken = chunk.points.take(&places);
        chunk.part(taken)
    });
    of_chunk.collect()
}
