// Calls a server again and again by a target of gRPC's own xDS client, and prints a line for each call.
//
// client.js TARGET PAUSE_MS [NAME=VALUE…], the rest being metadata of each call. It ends with its standard input.
'use strict';

const grpc = require('@grpc/grpc-js');
require('@grpc/grpc-js-xds').register();

const METHOD = '/eastway.test.Echo/Say';
const [target, pause, ...pairs] = process.argv.slice(2);
const metadata = new grpc.Metadata();
for (const pair of pairs) metadata.set(...pair.split(/=(.*)/s, 2));
const same = (bytes) => bytes;
const client = new grpc.Client(target, grpc.credentials.createInsecure());

function call() {
  const begun = process.hrtime.bigint();
  const deadline = Date.now() + 10_000;
  client.makeUnaryRequest(METHOD, same, same, Buffer.from('hello'), metadata, { deadline }, (error, answer) => {
    const millis = Math.round(Number(process.hrtime.bigint() - begun) / 1e6);
    const line = error ? { error: grpc.status[error.code], detail: error.details, millis } : { ok: answer.toString(), millis };
    console.log(JSON.stringify(line));
    setTimeout(call, Number(pause));
  });
}

process.stdin.on('end', () => process.exit()).resume();
call();
