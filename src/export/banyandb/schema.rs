//! The schema that the exporter writes into, made from the catalogue in the form in which BanyanDB stores its own
//! metrics: a measure for each metric, one tag family, every tag part of the series, one field.

use super::proto::common::{Catalog, Group, IntervalRule, Metadata, ResourceOpts, interval_rule};
use super::proto::database::{
    CompressionMethod, EncodingMethod, Entity, FieldSpec, FieldType, Measure, TagFamilySpec, TagSpec, TagType,
};
use crate::config::{BanyanDb, Span};
use crate::metrics::metric::Kind;
use crate::monitor::catalogue::CATALOGUE;
use crate::monitor::file_groups;

/// The tag family of all tags.
pub const FAMILY: &str = "default";
/// The one field.
pub const FIELD: &str = "value";
/// The measure of the processes' fadvise calls, which no metric is: Prometheus would keep a series for each forever.
pub const PROCESS_CALLS: &str = "ebpf_fadvise_process_calls";

/// A measure that the exporter writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its tags, which all make a series: first `node` and `scope`.
    pub tags: Vec<&'static str>,
}

/// Every measure; a histogram has three, named as Prometheus names its series.
pub fn specs() -> Vec<Spec> {
    let spec = |name: String, labels: &[&'static str], more: Option<&'static str>| {
        let tags = ["node", "scope"].into_iter().chain(labels.iter().copied()).chain(more).collect();
        Spec { name, tags }
    };
    let mut all = Vec::new();
    // What tells the scope alone is told by each of them.
    for metric in CATALOGUE.iter().filter(|m| !m.labels.contains(&"scope")) {
        match metric.kind {
            Kind::Counter | Kind::Gauge => all.push(spec(metric.name.into(), metric.labels, None)),
            Kind::Histogram => {
                all.push(spec(format!("{}_bucket", metric.name), metric.labels, Some("le")));
                all.push(spec(format!("{}_sum", metric.name), metric.labels, None));
                all.push(spec(format!("{}_count", metric.name), metric.labels, None));
            }
        }
    }
    all.push(spec(PROCESS_CALLS.into(), &[], Some("comm")));
    // A measure's tags are fixed: what the names in a group's pattern stand for is one of them.
    for metric in file_groups::METRICS {
        let (preset, rest) = (file_groups::PRESET, metric.labels.iter().copied().filter(|l| *l != file_groups::PRESET));
        all.push(spec(metric.name.into(), &[&[preset, "group"], &*rest.collect::<Vec<_>>()].concat(), None));
    }
    all
}

/// What names a measure; a revision makes the server check it.
pub fn metadata(group: &str, name: &str, mod_revision: i64) -> Metadata {
    Metadata { group: group.into(), name: name.into(), mod_revision, ..Default::default() }
}

/// The group to create.
pub fn group(config: &BanyanDb) -> Group {
    let resources = ResourceOpts {
        shard_num: config.shards,
        segment_interval: Some(rule(config.segment_interval)).into(),
        ttl: Some(rule(config.ttl)).into(),
        ..Default::default()
    };
    Group {
        metadata: Some(metadata("", &config.group, 0)).into(),
        catalog: Catalog::CATALOG_MEASURE.into(),
        resource_opts: Some(resources).into(),
        ..Default::default()
    }
}

fn rule(span: Span) -> IntervalRule {
    let (unit, num) = match span {
        Span::Hours(n) => (interval_rule::Unit::UNIT_HOUR, n),
        Span::Days(n) => (interval_rule::Unit::UNIT_DAY, n),
    };
    IntervalRule { unit: unit.into(), num, ..Default::default() }
}

/// The measure to create.
pub fn measure(group: &str, spec: &Spec) -> Measure {
    let tag =
        |name: &&str| TagSpec { name: (*name).into(), type_: TagType::TAG_TYPE_STRING.into(), ..Default::default() };
    let family = TagFamilySpec { name: FAMILY.into(), tags: spec.tags.iter().map(tag).collect(), ..Default::default() };
    let field = FieldSpec {
        name: FIELD.into(),
        field_type: FieldType::FIELD_TYPE_FLOAT.into(),
        encoding_method: EncodingMethod::ENCODING_METHOD_GORILLA.into(),
        compression_method: CompressionMethod::COMPRESSION_METHOD_ZSTD.into(),
        ..Default::default()
    };
    let entity = Entity { tag_names: spec.tags.iter().map(|t| (*t).into()).collect(), ..Default::default() };
    Measure {
        metadata: Some(metadata(group, &spec.name, 0)).into(),
        tag_families: vec![family],
        fields: vec![field],
        entity: Some(entity).into(),
        ..Default::default()
    }
}

/// How an existing group differs from the one wanted, if it does.
pub fn group_difference(wanted: &Group, found: &Group) -> Option<String> {
    let resources = |g: &Group| {
        let o = &g.resource_opts;
        let rule = |r: &IntervalRule| (r.unit.value(), r.num);
        (o.shard_num, rule(&o.segment_interval), rule(&o.ttl))
    };
    let text = |g: &Group| {
        let rule = |r: &IntervalRule| match r.unit.enum_value() {
            Ok(interval_rule::Unit::UNIT_HOUR) => format!("{}h", r.num),
            Ok(interval_rule::Unit::UNIT_DAY) => format!("{}d", r.num),
            _ => "none".into(),
        };
        let o = &g.resource_opts;
        let (segments, ttl) = (rule(&o.segment_interval), rule(&o.ttl));
        format!("{} shards, segment interval {segments}, ttl {ttl}", o.shard_num)
    };
    (resources(wanted) != resources(found)).then(|| format!("it has {}, not {}", text(found), text(wanted)))
}

/// How an existing measure differs from the one wanted, in what decides how points are written and found.
pub fn measure_difference(wanted: &Measure, found: &Measure) -> Option<String> {
    let families = |m: &Measure| {
        let tags = |f: &TagFamilySpec| f.tags.iter().map(|t| (t.name.clone(), t.type_.value())).collect::<Vec<_>>();
        m.tag_families.iter().map(|f| (f.name.clone(), tags(f))).collect::<Vec<_>>()
    };
    let fields = |m: &Measure| {
        let field = |f: &FieldSpec| {
            (f.name.clone(), f.field_type.value(), f.encoding_method.value(), f.compression_method.value())
        };
        m.fields.iter().map(field).collect::<Vec<_>>()
    };
    if families(wanted) != families(found) {
        return Some(format!("its tags are {}, not {}", tags_text(found), tags_text(wanted)));
    }
    if wanted.entity.tag_names != found.entity.tag_names {
        let names = |m: &Measure| m.entity.tag_names.join(", ");
        return Some(format!("its entity is {}, not {}", names(found), names(wanted)));
    }
    if fields(wanted) != fields(found) {
        return Some(format!("its fields are {}, not {}", fields_text(found), fields_text(wanted)));
    }
    None
}

fn tags_text(measure: &Measure) -> String {
    let tag = |t: &TagSpec| format!("{} {:?}", t.name, t.type_);
    let family = |f: &TagFamilySpec| format!("{}({})", f.name, f.tags.iter().map(tag).collect::<Vec<_>>().join(", "));
    measure.tag_families.iter().map(family).collect::<Vec<_>>().join(" ")
}

fn fields_text(measure: &Measure) -> String {
    let field =
        |f: &FieldSpec| format!("{} {:?} {:?} {:?}", f.name, f.field_type, f.encoding_method, f.compression_method);
    measure.fields.iter().map(field).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::collections::HashSet;

    #[test]
    fn a_measure_for_each_metric_with_distinct_names_and_tags() {
        let all = specs();
        let mut names = HashSet::new();
        for spec in &all {
            assert!(names.insert(&spec.name), "{} twice", spec.name);
            assert_eq!(spec.tags[..2], ["node", "scope"]);
            assert_eq!(spec.tags.iter().collect::<HashSet<_>>().len(), spec.tags.len(), "{}: a tag twice", spec.name);
        }
        let tags = |name: &str| all.iter().find(|s| s.name == name).map(|s| s.tags.join(" "));
        assert_eq!(tags("ebpf_fadvise_advice_total").as_deref(), Some("node scope advice"));
        assert_eq!(tags("ebpf_read_wait_seconds_bucket").as_deref(), Some("node scope le"));
        assert_eq!(tags("ebpf_read_wait_seconds_sum").as_deref(), Some("node scope"));
        assert_eq!(tags("ebpf_read_wait_seconds_count").as_deref(), Some("node scope"));
        assert_eq!(tags("ebpf_read_wait_seconds"), None);
        assert_eq!(tags(PROCESS_CALLS).as_deref(), Some("node scope comm"));
        assert_eq!(tags(file_groups::ADDS.name).as_deref(), Some("node scope preset group cause"));
        assert_eq!(tags(file_groups::WAITS.name).as_deref(), Some("node scope preset group"));
    }

    #[test]
    fn differences_are_told_and_revisions_are_none() {
        let spec = Spec { name: "m".into(), tags: vec!["node", "scope", "cause"] };
        let wanted = measure("g", &spec);
        let mut found = wanted.clone();
        found.metadata.mut_or_insert_default().mod_revision = 7;
        found.interval = "1m".into();
        assert_eq!(measure_difference(&wanted, &found), None);
        found.entity.mut_or_insert_default().tag_names.swap(0, 1);
        let text = "its entity is scope, node, cause, not node, scope, cause";
        assert_eq!(measure_difference(&wanted, &found).as_deref(), Some(text));
        found.tag_families[0].tags.pop();
        let text = measure_difference(&wanted, &found).unwrap();
        assert!(text.contains("its tags are default(node TAG_TYPE_STRING, scope TAG_TYPE_STRING), not"), "{text}");
        let mut found = wanted.clone();
        found.fields[0].field_type = FieldType::FIELD_TYPE_INT.into();
        let text = measure_difference(&wanted, &found).unwrap();
        assert!(text.starts_with("its fields are value FIELD_TYPE_INT"), "{text}");

        let wanted = group(&Config::default().export.banyandb);
        let mut found = wanted.clone();
        assert_eq!(group_difference(&wanted, &found), None);
        found.resource_opts.mut_or_insert_default().ttl.mut_or_insert_default().num = 3;
        let text = "it has 1 shards, segment interval 1d, ttl 3d, not 1 shards, segment interval 1d, ttl 7d";
        assert_eq!(group_difference(&wanted, &found).as_deref(), Some(text));
    }
}
