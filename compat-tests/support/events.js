// Waiting for events, in Node and in a page. Every wait has an end.

/** How long a test waits for something that must come. */
export const SOON_MS = 5_000;
/** How long a test watches that something does not come; what was sent after it has arrived long before. */
export const QUIET_MS = 300;

/**
 * The next `event` of anything with `bind`/`unbind` (pusher-js) or `once`/`off` (Node): resolves with the listener's first argument.
 *
 * Bind before causing the event: `const got = once(channel, 'greeting'); await trigger(…); await got`.
 */
export function once(emitter, event, ms = SOON_MS) {
  return watched(onceArguments(emitter, event, ms).then(([first]) => first));
}

/** As `once`, with all arguments: pusher-js hands `(data, {user_id})` to the listener of a client event. `signal` ends the wait. */
export function onceArguments(emitter, event, ms = SOON_MS, signal = undefined) {
  const bind = (emitter.bind ?? emitter.on).bind(emitter);
  const unbind = (emitter.unbind ?? emitter.off).bind(emitter);
  return watched(new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      unbind(event, listener);
    };
    const listener = (...args) => { end(); resolve(args); };
    const fail = (why) => { end(); reject(new Error(`no ${event} ${why}`)); };
    const timer = setTimeout(() => fail(`within ${ms} ms`), ms);
    signal?.addEventListener('abort', () => fail('wanted any more'));
    bind(event, listener);
  }));
}

/** The first of several events: resolves with `[event, data]`. */
export function firstOf(emitter, events, ms = SOON_MS) {
  const waiting = new AbortController();
  return Promise.any(events.map((event) => onceArguments(emitter, event, ms, waiting.signal).then(([data]) => [event, data])))
    .catch(() => { throw new Error(`none of ${events.join(', ')} within ${ms} ms`); })
    .finally(() => waiting.abort());
}

/** Gathers every `event` from now on: an array that grows, with `until(count, ms)` to wait for its length and `quiet(ms)` to let time pass. */
export function collect(emitter, event) {
  const got = [];
  (emitter.bind ?? emitter.on).call(emitter, event, (data) => got.push(data));
  return Object.defineProperties(got, {
    until: { value: (count, ms = SOON_MS) => until(() => got.length >= count, () => `${count} × ${event}, got ${got.length}`, ms).then(() => got) },
    quiet: { value: (ms = QUIET_MS) => sleep(ms).then(() => got) },
  });
}

/** Waits until `condition()` (may be async) is truthy and resolves with what it returned. `what` names it, as text or as a function that gives the text. */
export async function until(condition, what = String(condition), ms = SOON_MS) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${typeof what === 'function' ? what() : what}`);
    await sleep(10);
  }
}

export function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** A wait that a failing test never came to await is no failure of its own. */
function watched(promise) {
  promise.catch(() => {});
  return promise;
}
