//! Has the server know the schema before points go there: creates what is missing, and never changes what is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use grpcio::{Error, RpcStatusCode};
use protobuf::Message;
use protobuf::well_known_types::duration::Duration as ProtoDuration;

use super::points::Columns;
use super::proto::common::{Catalog, Metadata};
use super::proto::database::{
    GroupRegistryServiceCreateRequest, GroupRegistryServiceCreateResponse, GroupRegistryServiceGetRequest,
    GroupRegistryServiceGetResponse, MeasureRegistryServiceCreateRequest, MeasureRegistryServiceCreateResponse,
    MeasureRegistryServiceGetRequest, MeasureRegistryServiceGetResponse,
};
use super::proto::schema::{AwaitSchemaAppliedRequest, AwaitSchemaAppliedResponse, SchemaKey};
use super::schema::{self, Spec};
use super::{BanyanDb, MeasureState, Schema, State, method};
use crate::export::engine::link::{Link, is, is_out_of_reach, text};
use crate::export::engine::{End, Intake};
use crate::host::logging::clean;

/// How long the server is asked whether a single measure is in effect: the others wait meanwhile.
const MOMENT: Duration = Duration::from_millis(100);

impl MeasureState {
    fn new(state: State, revision: i64) -> Self {
        Self { state, revision, confirmed: false, internal_errors: 0 }
    }

    fn not_yet(why: String) -> Self {
        Self::new(State::NotYet(why, Instant::now()), 0)
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }
}

impl BanyanDb {
    pub(super) fn prepare_group(&mut self, intake: &mut Intake<Columns>, link: &Link) -> Result<(), End> {
        let wanted = schema::group(&self.config);
        let get = GroupRegistryServiceGetRequest { group: self.config.group.clone(), ..Default::default() };
        for _ in 0..2 {
            match self.call::<_, GroupRegistryServiceGetResponse>(intake, link, method::GET_GROUP, &get)? {
                Ok(found) => {
                    let group = &self.config.group;
                    if found.group.catalog.enum_value() != Ok(Catalog::CATALOG_MEASURE) {
                        return Err(End::Lost(format!(
                            "the group {group} is none of measures: choose another export.banyandb.group"
                        )));
                    }
                    if let Some(difference) = schema::group_difference(&wanted, &found.group) {
                        self.report(format!("BanyanDB: the group {group} stays as it is: {difference}"));
                    }
                    return Ok(());
                }
                Err(e) if is(&e, RpcStatusCode::NOT_FOUND) => {}
                Err(e) => return Err(End::Lost(text("getting the group", &e))),
            }
            let create = GroupRegistryServiceCreateRequest { group: Some(wanted.clone()).into(), ..Default::default() };
            match self.call::<_, GroupRegistryServiceCreateResponse>(intake, link, method::CREATE_GROUP, &create)? {
                Ok(_) => {
                    log::info!("BanyanDB: created the group {}", self.config.group);
                    return Ok(());
                }
                // Another agent was faster: compare.
                Err(e) if is(&e, RpcStatusCode::ALREADY_EXISTS) => {}
                Err(e) => return Err(End::Lost(text("creating the group", &e))),
            }
        }
        Err(End::Lost("the group comes and goes".into()))
    }

    /// Has every measure created, and waits until they are in effect.
    pub(super) fn prepare_measures(&mut self, intake: &mut Intake<Columns>, link: &Link) -> Result<Schema, End> {
        let mut measures = Vec::with_capacity(self.specs.len());
        let mut created = 0;
        for spec in Arc::clone(&self.specs).iter() {
            let (state, new) = self.prepare_measure(intake, link, spec)?;
            created += usize::from(new);
            measures.push(state);
        }
        if created > 0 {
            log::info!("BanyanDB: created {created} measures in the group {}", self.config.group);
        }
        let mut schema = Schema { measures };
        let all: Vec<usize> = (0..self.specs.len()).collect();
        self.await_applied(intake, link, &mut schema, &all, intake.limit() / 2)?;
        // One that fails does not keep the others waiting; where all do, it is the server.
        let why = schema.measures.iter().find_map(|m| match &m.state {
            State::NotYet(why, _) => Some(why),
            _ => None,
        });
        match why {
            Some(why) if !schema.measures.iter().any(MeasureState::is_ready) => Err(End::Lost(why.clone())),
            _ => Ok(schema),
        }
    }

    /// Has these measures created again, and waits so long for them to be in effect.
    pub(super) fn prepare_again(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        measures: &[usize],
        patience: Duration,
    ) -> Result<(), End> {
        for &measure in measures {
            let spec = self.specs[measure].clone();
            schema.measures[measure] = self.prepare_measure(intake, link, &spec)?.0;
        }
        self.await_applied(intake, link, schema, measures, patience.min(intake.limit() / 2))
    }

    /// Gets or creates a measure; tells whether it is new.
    fn prepare_measure(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        spec: &Spec,
    ) -> Result<(MeasureState, bool), End> {
        let wanted = schema::measure(&self.config.group, spec);
        let get = MeasureRegistryServiceGetRequest { metadata: wanted.metadata.clone(), ..Default::default() };
        for _ in 0..2 {
            match self.call::<_, MeasureRegistryServiceGetResponse>(intake, link, method::GET_MEASURE, &get)? {
                Ok(found) => {
                    let revision = found.measure.metadata.mod_revision;
                    let Some(difference) = schema::measure_difference(&wanted, &found.measure) else {
                        return Ok((self.usable(spec, revision)?, false));
                    };
                    self.report(format!(
                        "BanyanDB: the measure {} of the group {} stays as it is and gets no points: {difference}",
                        spec.name, self.config.group
                    ));
                    return Ok((MeasureState::new(State::Different, revision), false));
                }
                Err(e) if is(&e, RpcStatusCode::NOT_FOUND) => {}
                Err(e) => return Ok((of_one(&format!("getting the measure {}", spec.name), &e)?, false)),
            }
            let create =
                MeasureRegistryServiceCreateRequest { measure: Some(wanted.clone()).into(), ..Default::default() };
            match self.call::<_, MeasureRegistryServiceCreateResponse>(intake, link, method::CREATE_MEASURE, &create)? {
                Ok(created) => return Ok((self.usable(spec, created.mod_revision)?, true)),
                Err(e) if is(&e, RpcStatusCode::ALREADY_EXISTS) => {}
                Err(e) => return Ok((of_one(&format!("creating the measure {}", spec.name), &e)?, false)),
            }
        }
        Ok((MeasureState::not_yet(format!("the measure {} comes and goes", spec.name)), false))
    }

    fn usable(&self, spec: &Spec, revision: i64) -> Result<MeasureState, End> {
        let metadata = self.metadata(spec, revision).write_to_bytes();
        let metadata = metadata.map_err(|e| End::Lost(format!("the metadata of {}: {e}", spec.name)))?;
        Ok(MeasureState::new(State::Ready(metadata), revision))
    }

    fn metadata(&self, spec: &Spec, revision: i64) -> Metadata {
        schema::metadata(&self.config.group, &spec.name, revision)
    }

    /// Waits until the server has these measures in effect: before, it may accept points and lose them. One that cannot
    /// tell is asked for the points themselves, when the first were written. Those that keep it waiting are not ready.
    fn await_applied(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        measures: &[usize],
        patience: Duration,
    ) -> Result<(), End> {
        let ready: Vec<usize> = measures.iter().copied().filter(|m| schema.measures[*m].is_ready()).collect();
        if ready.is_empty() || self.is_applied(intake, link, schema, &ready, patience)?.is_none() {
            return Ok(());
        }
        for measure in ready {
            if let Some(why) = self.is_applied(intake, link, schema, &[measure], MOMENT)? {
                schema.measures[measure].state = State::NotYet(why, Instant::now());
            }
        }
        Ok(())
    }

    /// Asks whether all of these measures are in effect. Returns why not.
    fn is_applied(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        schema: &mut Schema,
        measures: &[usize],
        patience: Duration,
    ) -> Result<Option<String>, End> {
        let mut request = AwaitSchemaAppliedRequest::new();
        for &i in measures {
            let (group, name) = (self.config.group.clone(), self.specs[i].name.clone());
            request.keys.push(SchemaKey { kind: "measure".into(), group, name, ..Default::default() });
            request.min_revisions.push(schema.measures[i].revision);
        }
        request.timeout = Some(ProtoDuration {
            seconds: i64::try_from(patience.as_secs()).unwrap_or(0),
            nanos: patience.subsec_nanos().try_into().unwrap_or(0),
            ..Default::default()
        })
        .into();
        match self.call::<_, AwaitSchemaAppliedResponse>(intake, link, method::AWAIT_SCHEMA, &request)? {
            Ok(answer) if answer.applied => {
                measures.iter().for_each(|i| schema.measures[*i].confirmed = true);
                Ok(None)
            }
            Ok(answer) => {
                let laggards: Vec<&str> = answer.laggards.iter().map(|l| l.node.as_str()).collect();
                let laggards = laggards.join(", ");
                Ok(Some(clean(format!("the schema is not in effect yet, nodes behind: {laggards:?}"))))
            }
            Err(e) if is(&e, RpcStatusCode::UNIMPLEMENTED) => Ok(None),
            Err(e) if is_out_of_reach(&e) => Err(End::Lost(text("waiting for the schema", &e))),
            Err(e) => Ok(Some(clean(text("waiting for the schema", &e)))),
        }
    }

    /// Warns once of what an operator has to decide.
    fn report(&mut self, text: String) {
        // Half of it is the server's, which could say something new each time.
        let text = clean(text);
        if self.reported.len() >= 2 * self.specs.len() {
            self.reported.clear();
        }
        if self.reported.insert(text.clone()) {
            log::warn!("{text}");
        }
    }
}

/// What an error with one measure means: it can be of the server as a whole.
fn of_one(what: &str, error: &Error) -> Result<MeasureState, End> {
    let why = clean(text(what, error));
    if is_out_of_reach(error) { Err(End::Lost(why)) } else { Ok(MeasureState::not_yet(why)) }
}
