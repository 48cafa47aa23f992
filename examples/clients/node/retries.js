// When to ask again: the service says so itself (google.rpc.RetryInfo); pure arithmetic, waits for nothing.
import grpc from '@grpc/grpc-js';
import protobuf from 'protobufjs';

const RETRY_COUNT = 3;
const FIRST_DELAY_MS = 100;
const LONGEST_DELAY_MS = 2000;
const RETRY_INFO = 'type.googleapis.com/google.rpc.RetryInfo';

// The part of google.rpc that is needed here; its numbers are fixed for good.
const rpc = protobuf.Root.fromJSON({
  nested: {
    Any: { fields: { typeUrl: { id: 1, type: 'string' }, value: { id: 2, type: 'bytes' } } },
    Status: { fields: { details: { id: 3, type: 'Any', rule: 'repeated' } } },
    Duration: { fields: { seconds: { id: 1, type: 'int64' }, nanos: { id: 2, type: 'int32' } } },
    RetryInfo: { fields: { retryDelay: { id: 1, type: 'Duration' } } },
  },
});
const Status = rpc.lookupType('Status');
const RetryInfo = rpc.lookupType('RetryInfo');

// Returns the milliseconds after which to repeat a call, or null where that would not help. A call of phosphene.v1 has
// no effects, so repeating one is safe. RESOURCE_EXHAUSTED with RetryInfo: the service is full and says for how long.
// UNAVAILABLE: this replica is starting or leaving. Everything else fails again.
export function retryDelayMs(failure, attempt, remainingMs) {
  if (attempt >= RETRY_COUNT) {
    return null;
  }
  const backoffMs = Math.min(FIRST_DELAY_MS * 2 ** attempt, LONGEST_DELAY_MS);
  let delayMs;
  if (failure.code === grpc.status.RESOURCE_EXHAUSTED) {
    const askedMs = askedDelayMs(failure);
    if (askedMs === null) {
      return null;
    }
    delayMs = Math.max(askedMs, backoffMs);
  } else if (failure.code === grpc.status.UNAVAILABLE) {
    delayMs = backoffMs;
  } else {
    return null;
  }
  // Callers that were refused together must not come back together.
  delayMs *= 1 + 0.5 * Math.random();
  return delayMs < remainingMs ? delayMs : null;
}

function askedDelayMs(failure) {
  for (const packed of failure.metadata?.get('grpc-status-details-bin') ?? []) {
    for (const { typeUrl, value } of Status.decode(packed).details) {
      if (typeUrl === RETRY_INFO) {
        const { retryDelay } = RetryInfo.decode(value);
        return Number(retryDelay?.seconds ?? 0) * 1000 + (retryDelay?.nanos ?? 0) / 1e6;
      }
    }
  }
  return null;
}
