//! How a metric is declared: once, with what it is called in each output.

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Monotonic since the start of the agent.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Durations in power-of-two buckets.
    Histogram,
}

/// Declaration of a metric.
#[derive(Debug)]
pub struct Metric {
    /// Full Prometheus name; counters end in `_total`.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Unit of its values, as words for the documentation.
    pub unit: &'static str,
    /// One line of help, with what the number does not include where that could surprise.
    pub help: &'static str,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// The values of each of those labels; an empty list where they are open (versions, names of probes).
    pub label_values: &'static [&'static [&'static str]],
    /// Where it stands in `/api/v1/stats`; `None` for those of the agent itself, which are not there.
    pub json: Option<Json>,
}

/// A place in `/api/v1/stats`.
#[derive(Debug, Clone, Copy)]
pub struct Json {
    /// The object that it is in.
    pub section: &'static str,
    /// The key of its value, which is the sum if it has a label.
    pub key: Option<&'static str>,
    /// The key of the object with the value for each value of its label.
    pub by: Option<&'static str>,
}

macro_rules! label_values {
    () => {
        &[]
    };
    ($values:ident) => {
        &$values
    };
}
pub(crate) use label_values;
