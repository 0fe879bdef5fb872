//! Full names of BanyanDB's methods.

/// `GroupRegistryServiceGetRequest` → `GroupRegistryServiceGetResponse`.
pub const GET_GROUP: &str = "/banyandb.database.v1.GroupRegistryService/Get";
/// `GroupRegistryServiceCreateRequest` → `GroupRegistryServiceCreateResponse`.
pub const CREATE_GROUP: &str = "/banyandb.database.v1.GroupRegistryService/Create";
/// `MeasureRegistryServiceGetRequest` → `MeasureRegistryServiceGetResponse`.
pub const GET_MEASURE: &str = "/banyandb.database.v1.MeasureRegistryService/Get";
/// `MeasureRegistryServiceCreateRequest` → `MeasureRegistryServiceCreateResponse`.
pub const CREATE_MEASURE: &str = "/banyandb.database.v1.MeasureRegistryService/Create";
/// `AwaitSchemaAppliedRequest` → `AwaitSchemaAppliedResponse`.
pub const AWAIT_SCHEMA: &str = "/banyandb.schema.v1.SchemaBarrierService/AwaitSchemaApplied";
/// Stream of `WriteRequest` → stream of `WriteResponse`.
pub const WRITE: &str = "/banyandb.measure.v1.MeasureService/Write";
/// `QueryRequest` → `QueryResponse`.
pub const QUERY: &str = "/banyandb.measure.v1.MeasureService/Query";
