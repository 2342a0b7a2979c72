"""Calls a server again and again by a target of gRPC's own xDS client, and prints a line for each call.

client.py TARGET PAUSE_MS [NAME=VALUE…], the rest being metadata of each call. It ends with its standard input.
"""

import json
import sys
import threading
import time

import grpc

METHOD = "/eastway.test.Echo/Say"


def main(target, pause, metadata):
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with grpc.insecure_channel(target) as channel:
        say = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        while not ended.wait(pause):
            begun = time.monotonic()
            try:
                line = {"ok": say(b"hello", timeout=10, metadata=metadata).decode()}
            except grpc.RpcError as error:
                line = {"error": error.code().name, "detail": error.details()}
            line["millis"] = round((time.monotonic() - begun) * 1000)
            print(json.dumps(line), flush=True)


main(sys.argv[1], int(sys.argv[2]) / 1000, [tuple(pair.split("=", 1)) for pair in sys.argv[3:]])
