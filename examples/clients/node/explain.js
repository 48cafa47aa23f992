// Asks what lights up on one image:
//   npm ci && node explain.js photo.jpg [--server HOST:PORT] [--ca FILE] [--token-file FILE] [--timeout SECONDS]
// The contract is the descriptor set that the repository commits; nothing is generated. Fields have their proto names:
// a name that is not in the contract is dropped without a word.
import { readFileSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

import { retryDelayMs } from './retries.js';

const CONTRACT = new URL('../../../proto/phosphene_v1.binpb', import.meta.url);
const LOOPBACK = /^(127\.0\.0\.1|localhost|\[::1\]):/;
const MESSAGE_LIMIT_BYTES = 17 * 2 ** 20;

async function main() {
  const { values: options, positionals: images } = parseArgs({
    allowPositionals: true,
    options: {
      server: { type: 'string', default: '127.0.0.1:50051' },
      ca: { type: 'string' },
      'token-file': { type: 'string' },
      timeout: { type: 'string', default: '30' },
    },
  });
  if (images.length !== 1) {
    throw new Error('give one image: node explain.js photo.jpg');
  }
  const timeoutMs = Number(options.timeout) * 1000;
  if (!(timeoutMs > 0)) {
    throw new Error(`--timeout is ${options.timeout}, which is no number of seconds above 0`);
  }
  const client = openClient(options.server, options.ca);
  try {
    const request = {
      image: { data: readFileSync(images[0]) },
      parts: ['EXPLAIN_PART_NEURONS', 'EXPLAIN_PART_FIDELITY'],
      top_n: 5,
    };
    const answer = await explain(client, request, metadataOf(options), timeoutMs);
    for (const { neuron, activation } of answer.neurons) {
      console.log(`${neuron.neuron_id}\t${activation.toPrecision(3)}\t${neuron.name?.name ?? '-'}`);
    }
    console.log(`unexplained variance: ${answer.fidelity.fvu.toPrecision(3)}`);
  } finally {
    client.close();
  }
}

// One client serves a whole program.
function openClient(server, caFile) {
  const contract = protoLoader.loadFileDescriptorSetFromBuffer(readFileSync(CONTRACT), {
    enums: String,
    longs: Number,
    defaults: true,
    oneofs: true,
  });
  const { PhospheneService } = grpc.loadPackageDefinition(contract).phosphene.v1;
  const credentials =
    caFile === undefined ? grpc.credentials.createInsecure() : grpc.credentials.createSsl(readFileSync(caFile));
  return new PhospheneService(server, credentials, {
    'grpc.max_send_message_length': MESSAGE_LIMIT_BYTES,
    'grpc.max_receive_message_length': MESSAGE_LIMIT_BYTES,
    // A connection that died without a word is found within 70 seconds; servers take more pings for abuse.
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 10_000,
    'grpc.keepalive_permit_without_calls': 0,
    // One connection to each address of the name, calls in turn.
    'grpc.service_config': JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
  });
}

function metadataOf(options) {
  const metadata = new grpc.Metadata();
  if (options['token-file'] !== undefined) {
    if (options.ca === undefined && !LOOPBACK.test(options.server)) {
      throw new Error(`a token for ${options.server} would travel in the clear; use TLS (--ca)`);
    }
    metadata.set('authorization', `Bearer ${readFileSync(options['token-file'], 'utf8').trim()}`);
  }
  return metadata;
}

// Asks, and asks again where that helps; `timeoutMs` is for all of it.
async function explain(client, request, metadata, timeoutMs) {
  const deadline = Date.now() + timeoutMs;
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await explainOnce(client, request, metadata, deadline);
    } catch (failure) {
      const delayMs = retryDelayMs(failure, attempt, deadline - Date.now());
      if (delayMs === null) {
        throw failure;
      }
      await wait(delayMs);
    }
  }
}

function explainOnce(client, request, metadata, deadline) {
  return new Promise((resolve, reject) => {
    client.Explain(request, metadata, { deadline }, (failure, answer) => (failure ? reject(failure) : resolve(answer)));
  });
}

try {
  await main();
} catch (failure) {
  // A status of gRPC is a number; the codes of Node itself, such as ENOENT, are words.
  const isStatus = typeof failure.code === 'number';
  console.error(isStatus ? `${grpc.status[failure.code]}: ${failure.details}` : failure.message);
  process.exitCode = 1;
}
