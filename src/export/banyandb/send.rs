//! One Write stream, and what its answers mean for each point.

use std::collections::HashSet;

use protobuf::well_known_types::timestamp::Timestamp;

use super::points::{self, Columns, Encoded};
use super::proto::measure::{QueryRequest, QueryResponse, query_request};
use super::proto::model::{Status, TagProjection, TimeRange, tag_projection};
use super::schema::{self, Spec};
use super::write::{Written, write};
use super::{BanyanDb, Schema, Session, method};
use crate::export::engine::link::{Link, text};
use crate::export::engine::{Again, Chunk, End, Intake};
use crate::host::time::timestamp_parts;
use crate::metrics::export::STATE;

/// Answers of INTERNAL_ERROR in a row after which the schema is looked at again.
const INTERNAL_ERRORS: u32 = 3;
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
        give_up_unwritable(schema, batch);
        let mut points = Vec::new();
        for (chunk, c) in batch.iter().enumerate() {
            points.extend(c.points.places().map(|(column, row)| Point { chunk, column, row }));
        }
        if points.is_empty() {
            return Ok(Again { chunks: Vec::new(), reasons: Vec::new() });
        }
        let statuses = self.statuses(intake, link, schema, batch, &points)?;
        self.judge(intake, link, schema, batch, &points, &statuses)
    }

    /// Writes these points in one stream. Returns what is answered to each.
    fn statuses(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &Schema,
        batch: Batch,
        points: &[Point],
    ) -> Result<Vec<Option<Status>>, End> {
        let mut encoded = Encoded::default();
        let mut last = None;
        for p in points {
            let chunk = &batch[p.chunk].points;
            let column = &chunk.columns[p.column];
            let metadata = schema.measures[column.measure].metadata.as_deref();
            encoded.push(chunk, column, p.row, metadata.filter(|_| last != Some(column.measure)));
            last = Some(column.measure);
        }
        let receiver = write(link, encoded.messages(), self.option(intake)?);
        drop(encoded);
        let Written { answers, failure } = intake.answer("Write", &receiver)?;
        // What was answered before a failure may have gone with the server.
        if let Some(e) = failure {
            return Err(End::Lost(text("Write", &e)));
        }
        let mut statuses = vec![None; points.len()];
        for (id, status) in answers {
            let slot = usize::try_from(id).ok().and_then(|id| statuses.get_mut(id.checked_sub(1)?));
            if let Some(slot) = slot {
                *slot = Some(status);
            }
        }
        Ok(statuses)
    }

    /// What becomes of each point, by its status. Returns those that have to be written again.
    fn judge(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        batch: Batch,
        points: &[Point],
        statuses: &[Option<Status>],
    ) -> Result<Again<Columns>, End> {
        let mut again = Vec::new();
        let mut accepted = Vec::new();
        let (mut unknown, mut expired) = (HashSet::new(), HashSet::new());
        let mut reasons: Vec<(&'static str, usize)> = Vec::new();
        let mut refused: Vec<(Status, usize, usize)> = Vec::new();
        for (&p, status) in points.iter().zip(statuses) {
            let chunk = &mut batch[p.chunk].points;
            let measure = chunk.columns[p.column].measure;
            let reason = match status {
                Some(Status::STATUS_SUCCEED) => {
                    accepted.push(p);
                    continue;
                }
                Some(
                    s @ (Status::STATUS_INVALID_TIMESTAMP
                    | Status::STATUS_METADATA_REQUIRED
                    | Status::STATUS_VERSION_UNSUPPORTED),
                ) => {
                    match refused.iter_mut().find(|r| (r.0, r.1) == (*s, measure)) {
                        Some(r) => r.2 += 1,
                        None => refused.push((*s, measure, 1)),
                    }
                    STATE.dropped("refused", 1);
                    chunk.give_up(p.column, p.row);
                    continue;
                }
                // By its contract this version is still served.
                Some(Status::STATUS_VERSION_DEPRECATED) => "version_deprecated",
                Some(Status::STATUS_NOT_FOUND) => {
                    unknown.insert(measure);
                    "not_found"
                }
                Some(Status::STATUS_EXPIRED_SCHEMA) => {
                    expired.insert(measure);
                    "expired_schema"
                }
                Some(Status::STATUS_SCHEMA_NOT_APPLIED) => "schema_not_applied",
                Some(Status::STATUS_DISK_FULL) => "disk_full",
                Some(Status::STATUS_INTERNAL_ERROR) => "internal_error",
                Some(Status::STATUS_UNSPECIFIED) | None => "no_answer",
            };
            match reasons.iter_mut().find(|(r, _)| *r == reason) {
                Some((_, n)) => *n += 1,
                None => reasons.push((reason, 1)),
            }
            again.push(p);
        }
        for (status, measure, n) in refused {
            let measure = &self.specs[measure].name;
            log::warn!("BanyanDB refuses {n} points of {measure}, which are dropped: {status:?}");
        }
        let lost = self.not_stored(intake, link, schema, batch, &accepted)?;
        if !lost.is_empty() {
            reasons.push(("schema_not_applied", lost.len()));
            again.extend(lost);
        }
        if again.is_empty() {
            self.internal_errors = 0;
        } else {
            self.renew(intake, link, schema, &reasons, unknown, expired)?;
        }
        Ok(Again { chunks: take(batch, again), reasons })
    }

    /// Looks again at the schema of what was answered so.
    fn renew(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        reasons: &[(&'static str, usize)],
        unknown: HashSet<usize>,
        expired: HashSet<usize>,
    ) -> Result<(), End> {
        if reasons.iter().any(|(reason, _)| *reason == "internal_error") {
            self.internal_errors += 1;
        }
        if !unknown.is_empty() {
            // Without the group no measure can be created.
            self.prepare_group(intake, link)?;
        }
        let mut renewed: Vec<usize> = unknown.into_iter().chain(expired).collect();
        if self.internal_errors >= INTERNAL_ERRORS {
            self.internal_errors = 0;
            self.prepare_group(intake, link)?;
            renewed = (0..self.specs.len()).collect();
        }
        for &measure in &renewed {
            let spec = self.specs[measure].clone();
            schema.measures[measure] = self.prepare_measure(intake, link, &spec)?.0;
        }
        self.await_applied(intake, link, schema, &renewed)
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
            let answer = answer.map_err(|e| End::Lost(text("looking for a point", &e)))?;
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

/// Gives up the points of measures that are something else on the server.
fn give_up_unwritable(schema: &Schema, batch: Batch) {
    let mut given_up = 0;
    for chunk in batch.iter_mut().map(|c| &mut c.points) {
        let places: Vec<_> = chunk.places().collect();
        for (column, row) in places {
            if schema.measures[chunk.columns[column].measure].metadata.is_none() {
                given_up += 1;
                chunk.give_up(column, row);
            }
        }
    }
    STATE.dropped("schema", given_up);
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
