// What a test file opened is closed when its last test is over, whether it passed or not.

import { after } from 'node:test';

const steps = [];

/** Runs `step` (may be async) at the end of the test file; the last registered runs first. */
export function atEnd(step) {
  steps.push(step);
}

after(async () => {
  while (steps.length > 0) await steps.pop()();
});
