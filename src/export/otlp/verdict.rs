//! What an answer means for the batch, as OTLP's specification has it.

use std::time::{Duration, SystemTime};

use grpcio::{Error, RpcStatus, RpcStatusCode};
use protobuf::Message;

use super::post::Answer;
use super::proto::metrics_service::ExportMetricsServiceResponse;
use super::proto::status::{RetryInfo, Status};
use crate::export::engine::link::text;

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Taken,
    /// The same; it says something all the same.
    Warned(String),
    /// It has refused so many of its points for good, and why.
    Partly(usize, String),
    /// It has refused all of it for good.
    Refused(String),
    /// It is to be sent again, not before this time is over.
    Again(String, Duration),
}

/// What gRPC gave; an error if that was no answer.
pub fn of_grpc(answer: grpcio::Result<ExportMetricsServiceResponse>) -> Result<Verdict, String> {
    let error = match answer {
        Ok(response) => return Ok(taken(&response)),
        Err(error) => error,
    };
    let why = text("Export", &error);
    let Error::RpcFailure(status) = &error else { return Err(why) };
    let wait = retry_info(status.details());
    Ok(match (status.code(), wait) {
        // What gRPC says of a connection that fails looks like an answer. Then another one is tried.
        (RpcStatusCode::UNAVAILABLE | RpcStatusCode::DEADLINE_EXCEEDED, None) => return Err(why),
        (code, wait) if is_retryable(code) || asks_for_time(status, wait) => {
            Verdict::Again(why, wait.unwrap_or_default())
        }
        _ => Verdict::Refused(why),
    })
}

fn is_retryable(code: RpcStatusCode) -> bool {
    [
        RpcStatusCode::CANCELLED,
        RpcStatusCode::DEADLINE_EXCEEDED,
        RpcStatusCode::ABORTED,
        RpcStatusCode::OUT_OF_RANGE,
        RpcStatusCode::UNAVAILABLE,
        RpcStatusCode::DATA_LOSS,
    ]
    .contains(&code)
}

/// A receiver that has no room tells when it will; else it never will for this batch.
fn asks_for_time(status: &RpcStatus, wait: Option<Duration>) -> bool {
    status.code() == RpcStatusCode::RESOURCE_EXHAUSTED && wait.is_some()
}

/// When to try again, if a failure tells.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = Status::parse_from_bytes(details).ok()?;
    let info = status.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::parse_from_bytes(&info.value).ok()?.retry_delay;
    let (seconds, nanos) = (u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?);
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

/// What an HTTP server has answered.
pub fn of_http(answer: &Answer) -> Verdict {
    if answer.status == 200 {
        // Some answer with text, or nothing, where a message should be.
        return taken(&ExportMetricsServiceResponse::parse_from_bytes(&answer.body).unwrap_or_default());
    }
    let message = Status::parse_from_bytes(&answer.body).ok().map(|s| s.message).filter(|m| !m.is_empty());
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(&answer.body).trim().to_owned());
    let colon = if message.is_empty() { "" } else { ": " };
    let why = format!("HTTP {}{colon}{message}", answer.status);
    match answer.status {
        429 | 502 | 503 | 504 => {
            Verdict::Again(why, answer.retry_after.as_deref().and_then(retry_after).unwrap_or_default())
        }
        _ => Verdict::Refused(why),
    }
}

/// Seconds, or the time at which to try again.
fn retry_after(text: &str) -> Option<Duration> {
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text.trim()).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

fn taken(response: &ExportMetricsServiceResponse) -> Verdict {
    let said = &response.partial_success;
    match (usize::try_from(said.rejected_data_points).unwrap_or(0), said.error_message.as_str()) {
        (0, "") => Verdict::Taken,
        (0, warning) => Verdict::Warned(warning.to_owned()),
        (n, "") => Verdict::Partly(n, "no reason is given".to_owned()),
        (n, why) => Verdict::Partly(n, why.to_owned()),
    }
}

/// Whatever a receiver answers is understood, or not, in bounds.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(kind: u8, bytes: &[u8]) {
    let answer = Answer { status: [200, 400, 503][usize::from(kind % 3)], retry_after: None, body: bytes.to_vec() };
    let _ = of_http(&answer);
    let _ = retry_info(bytes);
    let _ = retry_after(&String::from_utf8_lossy(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::otlp::proto::metrics_service::ExportMetricsPartialSuccess;
    use protobuf::MessageField;
    use protobuf::well_known_types::any::Any;

    /// A failure with these details.
    fn failure(code: RpcStatusCode, details: Vec<u8>) -> grpcio::Result<ExportMetricsServiceResponse> {
        Err(Error::RpcFailure(RpcStatus::with_details(code, "why".into(), details)))
    }

    fn details(delay: Duration) -> Vec<u8> {
        let info = RetryInfo { retry_delay: MessageField::some(delay.into()), ..Default::default() };
        let any = |type_url: &str, value| Any { type_url: type_url.into(), value, ..Default::default() };
        let other = any("type.googleapis.com/google.rpc.DebugInfo", vec![1, 2]);
        let info = any("type.googleapis.com/google.rpc.RetryInfo", info.write_to_bytes().unwrap());
        Status { details: vec![other, info], ..Default::default() }.write_to_bytes().unwrap()
    }

    #[test]
    fn codes_of_grpc_mean_what_the_specification_says() {
        use RpcStatusCode as C;
        for code in [C::CANCELLED, C::ABORTED, C::OUT_OF_RANGE, C::DATA_LOSS] {
            assert!(matches!(of_grpc(failure(code, vec![])), Ok(Verdict::Again(_, Duration::ZERO))), "{code:?}");
        }
        for code in [C::UNAVAILABLE, C::DEADLINE_EXCEEDED] {
            assert!(of_grpc(failure(code, vec![])).is_err(), "{code:?}");
        }
        for code in [C::UNAVAILABLE, C::RESOURCE_EXHAUSTED] {
            let wait = Duration::from_millis(1500);
            let verdict = of_grpc(failure(code, details(wait)));
            assert!(matches!(verdict, Ok(Verdict::Again(_, w)) if w == wait), "{verdict:?}");
        }
        for code in [
            C::UNKNOWN,
            C::INVALID_ARGUMENT,
            C::NOT_FOUND,
            C::ALREADY_EXISTS,
            C::PERMISSION_DENIED,
            C::UNAUTHENTICATED,
            C::FAILED_PRECONDITION,
            C::UNIMPLEMENTED,
            C::INTERNAL,
            C::RESOURCE_EXHAUSTED,
        ] {
            assert!(matches!(of_grpc(failure(code, vec![9])), Ok(Verdict::Refused(_))), "{code:?}");
        }
    }

    #[test]
    fn codes_of_http_mean_what_the_specification_says() {
        let of = |status: u16, retry_after: Option<&str>, body: &[u8]| {
            of_http(&Answer { status, retry_after: retry_after.map(str::to_owned), body: body.to_vec() })
        };
        for status in [429, 502, 503, 504] {
            let verdict = of(status, Some("7"), b"busy\n");
            assert_eq!(verdict, Verdict::Again(format!("HTTP {status}: busy"), Duration::from_secs(7)));
        }
        assert_eq!(of(503, None, b""), Verdict::Again("HTTP 503".into(), Duration::ZERO));
        let in_a_minute = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let Verdict::Again(_, wait) = of(503, Some(&in_a_minute), b"") else { panic!("not again") };
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(61), "{wait:?}");
        let message = Status { message: "out of bounds".into(), ..Default::default() }.write_to_bytes().unwrap();
        for status in [301, 400, 401, 403, 404, 413, 500, 501] {
            assert_eq!(of(status, Some("7"), &message), Verdict::Refused(format!("HTTP {status}: out of bounds")));
        }
        for body in [&b""[..], b"{}", b"\xff\xff"] {
            assert_eq!(of(200, None, body), Verdict::Taken);
        }
    }

    #[test]
    fn a_success_may_be_partial() {
        let of = |rejected_data_points, message: &str| {
            let partial = ExportMetricsPartialSuccess {
                rejected_data_points,
                error_message: message.into(),
                ..Default::default()
            };
            taken(&ExportMetricsServiceResponse { partial_success: Some(partial).into(), ..Default::default() })
        };
        assert_eq!(of(0, ""), Verdict::Taken);
        assert_eq!(of(0, "soon"), Verdict::Warned("soon".into()));
        assert_eq!(of(3, "old"), Verdict::Partly(3, "old".into()));
        assert_eq!(of(-3, ""), Verdict::Taken);
    }
}
