//! The methods of the services in proto/, as grpcio wants them: it makes them itself only for protobuf 2.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use grpcio::{Error, GrpcSlice, Marshaller, MessageReader, Method, MethodType, pb_de, pb_ser};
use protobuf::Message;

/// Name of the agent's own service.
pub const SERVICE: &str = "banyandb.ebpf.v1.EBPFMetricsService";

/// Full names of the methods.
pub mod name {
    /// `GetMetricsRequest` → `GetMetricsResponse`.
    pub const GET_METRICS: &str = "/banyandb.ebpf.v1.EBPFMetricsService/GetMetrics";
    /// `StreamMetricsRequest` → stream of `StreamMetricsResponse`.
    pub const STREAM_METRICS: &str = "/banyandb.ebpf.v1.EBPFMetricsService/StreamMetrics";
    /// `GetIOStatsRequest` → `GetIOStatsResponse`.
    pub const GET_IO_STATS: &str = "/banyandb.ebpf.v1.EBPFMetricsService/GetIOStats";
    /// `GetModuleStatusRequest` → `GetModuleStatusResponse`.
    pub const GET_MODULE_STATUS: &str = "/banyandb.ebpf.v1.EBPFMetricsService/GetModuleStatus";
    /// `ConfigureModuleRequest` → `ConfigureModuleResponse`.
    pub const CONFIGURE_MODULE: &str = "/banyandb.ebpf.v1.EBPFMetricsService/ConfigureModule";
    /// `GetHealthRequest` → `GetHealthResponse`.
    pub const GET_HEALTH: &str = "/banyandb.ebpf.v1.EBPFMetricsService/GetHealth";
    /// `GetDiagnosisRequest` → `GetDiagnosisResponse`.
    pub const GET_DIAGNOSIS: &str = "/banyandb.ebpf.v1.EBPFMetricsService/GetDiagnosis";
    /// `HealthCheckRequest` → `HealthCheckResponse`.
    pub const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
    /// `HealthCheckRequest` → stream of `HealthCheckResponse`.
    pub const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
}

/// A method as the server sees it: its answers are encoded already, so that one encoding serves many calls.
pub fn served<Req: Message>(ty: MethodType, name: &'static str) -> Method<Req, GrpcSlice> {
    let resp_mar = Marshaller { ser: pass, de: |_| Err(Error::Codec("the server reads no answers".into())) };
    Method { ty, name, req_mar: Marshaller { ser: pb_ser, de: decode }, resp_mar }
}

/// The same, whose request stays bytes for now: whether the client may ask comes first.
pub fn served_unread(ty: MethodType, name: &'static str) -> Method<Vec<u8>, GrpcSlice> {
    let ser = |_: &Vec<u8>, _: &mut GrpcSlice| Err(Error::Codec("the server makes no requests".into()));
    let resp_mar = Marshaller { ser: pass, de: |_| Err(Error::Codec("the server reads no answers".into())) };
    Method { ty, name, req_mar: Marshaller { ser, de: read }, resp_mar }
}

/// A method as a client sees it.
pub fn called<Req: Message, Resp: Message>(ty: MethodType, name: &'static str) -> Method<Req, Resp> {
    let (req_mar, resp_mar) = (Marshaller { ser: pb_ser, de: pb_de }, Marshaller { ser: pb_ser, de: pb_de });
    Method { ty, name, req_mar, resp_mar }
}

/// Another reference to the same bytes; only what fits into the slice itself is copied.
fn pass(answer: &GrpcSlice, out: &mut GrpcSlice) -> grpcio::Result<()> {
    *out = answer.clone();
    Ok(())
}

fn read(mut reader: MessageReader) -> grpcio::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(reader.len());
    reader.read_to_end(&mut bytes).map_err(|e| Error::Codec(e.into()))?;
    Ok(bytes)
}

/// A panic on a client's bytes would end the thread that serves it.
fn decode<M: Message>(reader: MessageReader) -> grpcio::Result<M> {
    catch_unwind(AssertUnwindSafe(|| pb_de(reader))).unwrap_or_else(|_| Err(Error::Codec("not readable".into())))
}
