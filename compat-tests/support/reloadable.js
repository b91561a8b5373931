// Servers that take a new configuration while they run.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { atEnd } from './at-end.js';
import { until } from './events.js';
import { startRaptor } from './raptor.js';
import { toToml } from './toml.js';

export const TAKEN = /the configuration is reloaded/;
export const REFUSED = /the new configuration is refused, the old one stays/;

/** A server whose file can be rewritten: `write(config)`, `reload(line)` sends SIGHUP and waits for a log line. */
export async function startReloadable(config) {
  const directory = mkdtempSync(join(tmpdir(), 'raptor-reload-'));
  atEnd(() => rmSync(directory, { recursive: true, force: true }));
  const file = join(directory, 'raptor.toml');
  const write = (keys) => writeFileSync(file, typeof keys === 'string' ? keys : toToml({ listen: '127.0.0.1:0', ...keys }));
  write(typeof config === 'function' ? config(directory) : config);
  const raptor = await startRaptor({ config: null, args: ['--config', file] });
  async function reload(line) {
    const seen = raptor.stderr().length;
    process.kill(raptor.pid, 'SIGHUP');
    await until(() => line.test(raptor.stderr().slice(seen)), () => `${line} in ${raptor.stderr().slice(seen)}`);
  }
  return { ...raptor, directory, write, reload };
}
