// What a test file opened is closed when its last test is over, whether it passed or not.

import { after } from 'node:test';

const steps = [];

/** Runs `step` (may be async) at the end of the test file; the last registered runs first. A step that fails does not keep others from running. */
export function atEnd(step) {
  steps.push(step);
}

after(async () => {
  const failures = [];
  while (steps.length > 0) await Promise.resolve().then(steps.pop()).catch((error) => failures.push(error));
  if (failures.length > 0) throw new AggregateError(failures, 'closing after the tests failed');
});
