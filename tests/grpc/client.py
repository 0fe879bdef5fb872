"""A gRPC client that is not ours: calls every method with stubs that grpcio-tools makes of proto/.

client.py GENERATED ADDRESS prints one JSON object of what it got; a call that should be refused is its status code.
"""
import json
import sys

import grpc
from google.protobuf import json_format

sys.path.insert(0, sys.argv[1])
from banyandb.ebpf.v1 import metrics_pb2, rpc_pb2, rpc_pb2_grpc  # noqa: E402

grpc.__path__.append(sys.argv[1] + "/grpc")  # the stubs of grpc.health.v1 lie beside the library's own package
from grpc.health.v1 import health_pb2, health_pb2_grpc  # noqa: E402


def shown(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def refused(call):
    try:
        call()
    except grpc.RpcError as e:
        return e.code().name
    return "not refused"


channel = grpc.insecure_channel(sys.argv[2])
agent = rpc_pb2_grpc.EBPFMetricsServiceStub(channel)
health = health_pb2_grpc.HealthStub(channel)
limit = {"timeout": 60}
result = {}

result["GetMetrics"] = shown(agent.GetMetrics(rpc_pb2.GetMetricsRequest(), **limit))
filtered = rpc_pb2.GetMetricsRequest(modules=["iomonitor"], label_filters={"cause": "read"})
result["filtered"] = shown(agent.GetMetrics(filtered, **limit))
request = rpc_pb2.GetIOStatsRequest(include_process_stats=True)
result["GetIOStats"] = shown(agent.GetIOStats(request, **limit))
result["GetModuleStatus"] = shown(agent.GetModuleStatus(rpc_pb2.GetModuleStatusRequest(), **limit))
request = rpc_pb2.GetHealthRequest(include_diagnostics=True)
result["GetHealth"] = shown(agent.GetHealth(request, **limit))
stream = agent.StreamMetrics(rpc_pb2.StreamMetricsRequest(interval_seconds=1), **limit)
result["StreamMetrics"] = [shown(next(stream)) for _ in range(2)]
stream.cancel()

request = rpc_pb2.ConfigureModuleRequest(module="iomonitor", enabled=False)
result["disabled"] = shown(agent.ConfigureModule(request, **limit))
request = rpc_pb2.ConfigureModuleRequest(module="iomonitor", enabled=True, config_json='{"interval":"2s"}')
result["enabled"] = shown(agent.ConfigureModule(request, **limit))

check = health_pb2.HealthCheckRequest(service="banyandb.ebpf.v1.EBPFMetricsService")
result["Check"] = shown(health.Check(check, **limit))
watch = health.Watch(health_pb2.HealthCheckRequest(), **limit)
result["Watch"] = shown(next(watch))
watch.cancel()

result["unknown module"] = refused(
    lambda: agent.GetModuleStatus(rpc_pb2.GetModuleStatusRequest(modules=["net"]), **limit))
result["no interval"] = refused(lambda: next(agent.StreamMetrics(rpc_pb2.StreamMetricsRequest(), **limit)))
result["compressed"] = refused(
    lambda: agent.GetHealth(rpc_pb2.GetHealthRequest(), compression=grpc.Compression.Gzip, **limit))
assert metrics_pb2.METRIC_TYPE_HISTOGRAM == 3

json.dump(result, sys.stdout)
