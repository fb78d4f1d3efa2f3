"""Reads a request to export logs (OTLP, protobuf) from standard input, and prints it as JSON; with the argument `traces` one
to export traces.

By Google's protobuf and OpenTelemetry's own definitions: nothing of it is shared with what wrote the request."""

import json
import sys

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

request = ExportTraceServiceRequest() if sys.argv[1:] == ["traces"] else ExportLogsServiceRequest()
request.ParseFromString(sys.stdin.buffer.read())
print(json.dumps(MessageToDict(request)))
