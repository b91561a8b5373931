// Runs the built server for a test. `RAPTOR_BIN` names the program; without it the release build of this checkout is taken.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { atEnd } from './at-end.js';
import { toToml } from './toml.js';

const START_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 10_000;

const binary = process.env.RAPTOR_BIN ?? fileURLToPath(new URL('../../target/release/raptor', import.meta.url));

/** The application of the test vectors (`pusher.md` 11), every feature on, hosted Pusher's limits. Also read by the Python and Ruby tests. */
export const TEST_APP = Object.freeze(JSON.parse(readFileSync(new URL('./test-app.json', import.meta.url))));

/**
 * Starts a server on a free port of 127.0.0.1 and resolves once it listens. It is killed when the test file ends, if not stopped before.
 *
 * @param {object} [options]
 * @param {object|null} [options.config] keys of the configuration file, laid over `{listen: '127.0.0.1:0', apps: [TEST_APP]}`; `null`: no file
 * @param {string[]} [options.args] further arguments
 * @param {object} [options.env] further environment variables
 * @param {string[]} [options.at] arguments that say where to listen, when it is started again
 * @returns {Promise<Raptor>} rejects with what the server wrote if it ends instead of listening
 *
 * @typedef {object} Raptor
 * @property {number} port
 * @property {string} url `http://127.0.0.1:PORT`
 * @property {number} pid
 * @property {() => string} stdout what it wrote so far
 * @property {() => string} stderr
 * @property {(signal?: string, withinMs?: number) => Promise<{code: number|null, signal: string|null}>} stop sends SIGTERM unless told otherwise, then waits for the end, and kills it if that takes too long
 * @property {(signal?: string) => Promise<Raptor>} restart stops it and starts the same configuration on the same port
 */
export async function startRaptor({ config = {}, args = [], env = {}, at = [] } = {}) {
  const program = launch({ config: config && { listen: '127.0.0.1:0', apps: [TEST_APP], ...config }, args: [...args, ...at], env });
  const port = await program.listening;

  async function restart(signal) {
    await program.stop(signal);
    return startRaptor({ config, args, env, at: ['--listen', `127.0.0.1:${port}`] });
  }
  return { port, url: `http://127.0.0.1:${port}`, pid: program.pid, stdout: program.stdout, stderr: program.stderr, stop: program.stop, restart };
}

/**
 * Runs a command of the program to its end (`check`, `trigger`, a start-up that must fail).
 *
 * @param {string[]} args
 * @param {object} [options] `config` (keys of a configuration file, nothing added), `env`
 * @returns {Promise<{code: number|null, signal: string|null, stdout: string, stderr: string}>}
 */
export async function runRaptor(args, { config = null, env = {} } = {}) {
  const program = launch({ config, args, env });
  program.listening.catch(() => {});
  const timer = setTimeout(() => program.stop('SIGKILL'), START_TIMEOUT_MS);
  const end = await program.ended;
  clearTimeout(timer);
  return { ...end, stdout: program.stdout(), stderr: program.stderr() };
}

function launch({ config, args, env }) {
  const directory = mkdtempSync(join(tmpdir(), 'raptor-test-'));
  const configFile = join(directory, 'raptor.toml');
  if (config) writeFileSync(configFile, toToml(config));

  const child = spawn(binary, config ? [...args, '--config', configFile] : args, {
    env: { PATH: process.env.PATH, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';

  const ended = new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => resolve({ code, signal }));
  }).finally(() => rmSync(directory, { recursive: true, force: true }));

  const listening = new Promise((resolve, reject) => {
    const fail = (why) => reject(new Error(`${why}\nstdout: ${stdout}\nstderr: ${stderr}`));
    const timer = setTimeout(() => fail(`${binary} did not listen within ${START_TIMEOUT_MS} ms`), START_TIMEOUT_MS);
    const look = (said) => {
      const line = /^Raptor is listening on http:\/\/127\.0\.0\.1:(\d+)\n/m.exec(said);
      if (!line) return;
      clearTimeout(timer);
      resolve(Number(line[1]));
    };
    child.stdout.setEncoding('utf8').on('data', (text) => look((stdout += text)));
    // It says so here where standard output is the audit log.
    child.stderr.setEncoding('utf8').on('data', (text) => look((stderr += text)));
    ended.then(
      ({ code, signal }) => { clearTimeout(timer); fail(`${binary} ended (${signal ?? code}) before it listened`); },
      (error) => { clearTimeout(timer); reject(error); },
    );
  });

  async function stop(signal = 'SIGTERM', withinMs = STOP_TIMEOUT_MS) {
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), withinMs);
    const end = await ended;
    clearTimeout(timer);
    return end;
  }
  atEnd(() => stop('SIGKILL'));

  return { pid: child.pid, listening, ended, stop, stdout: () => stdout, stderr: () => stderr };
}
