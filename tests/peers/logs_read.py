"""Prints the events of a stream of CloudWatch Logs as JSON: times and messages, as boto3 reads them.

    logs_read.py URL REGION ACCESS_KEY_ID SECRET_ACCESS_KEY GROUP STREAM"""

import json
import sys

import boto3

url, region, access_key_id, secret_access_key, group, stream = sys.argv[1:]
logs = boto3.client(
    "logs", endpoint_url=url, region_name=region, aws_access_key_id=access_key_id, aws_secret_access_key=secret_access_key
)
answer = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)
print(json.dumps([{"timestamp": event["timestamp"], "message": event["message"]} for event in answer["events"]]))
