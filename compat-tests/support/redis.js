// Redis servers of a test's own: one, several that watch each other, with what protects them.

import { execFile, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { atEnd } from './at-end.js';
import { until } from './events.js';
import { freePort } from './free-port.js';

const START_TIMEOUT_MS = 10_000;

/**
 * Starts one on a free port of 127.0.0.1, without persistence. It ends with the test file.
 *
 * @param {object} [options] `keeps`: it writes down all that it holds before anybody hears of it, and has it again after `kill` and `restart`;
 *   `args`: more of them; `files`: by name, what to put into its directory first
 * @returns {Promise<{port: number, url: string, directory: string, cli: (...args: string[]) => string, kill: () => Promise<void>, restart: () => Promise<void>}>}
 *   `kill` loses what it held, if it does not keep it
 */
export async function startRedis({ keeps = false, args = [], files = {} } = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'raptor-redis-'));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
  const cli = (...command) => execFileSync('redis-cli', ['-p', port, ...command], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();
  let port;
  let child;

  async function start() {
    const keeping = keeps ? ['--appendonly', 'yes', '--appendfsync', 'always'] : [];
    // The file of a Sentinel or the like comes first.
    const first = files['redis.conf'] === undefined ? [] : ['redis.conf'];
    child = spawn('redis-server', [...first, '--port', port, '--bind', '127.0.0.1', '--dir', directory, ...(args.includes('--sentinel') ? [] : ['--save', '']), ...keeping, ...args], { stdio: 'ignore', cwd: directory });
    await until(async () => child.exitCode !== null || await answers(port), 'redis-server starts', START_TIMEOUT_MS);
  }
  /** Whether nobody else took the port meanwhile. */
  const isOurs = () => child.exitCode === null && cli('INFO', 'server').includes(`process_id:${child.pid}\r`);
  async function kill() {
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await ended;
  }
  for (let tries = 0; tries === 0 || !isOurs(); tries += 1) {
    if (tries === 3) throw new Error('redis-server does not start');
    await kill();
    port = await freePort();
    await start();
  }
  atEnd(async () => {
    await kill();
    rmSync(directory, { recursive: true, force: true });
  });
  async function restart() {
    await start();
    if (!isOurs()) throw new Error('redis-server does not start again');
  }
  return { port, url: `redis://127.0.0.1:${port}`, directory, cli, kill, restart };
}

/**
 * A primary and its replica, and three Sentinels that make the replica the primary once that has been silent for `silenceMs`.
 *
 * @returns {Promise<{url: string, primary: object, replica: object, currentPort: () => number}>}
 */
export async function startSentinels({ silenceMs = 1_000 } = {}) {
  const primary = await startRedis();
  const replica = await startRedis({ args: ['--replicaof', '127.0.0.1', String(primary.port)] });
  const conf = [`sentinel monitor main 127.0.0.1 ${primary.port} 2`, `sentinel down-after-milliseconds main ${silenceMs}`, 'sentinel failover-timeout main 5000', ''].join('\n');
  const sentinels = [];
  for (let n = 0; n < 3; n += 1) sentinels.push(await startRedis({ files: { 'redis.conf': conf }, args: ['--sentinel'] }));
  const field = (sentinel, name) => {
    const lines = sentinel.cli('SENTINEL', 'MASTER', 'main').split('\n');
    return lines[lines.indexOf(name) + 1];
  };
  await until(() => sentinels.every((sentinel) => field(sentinel, 'num-other-sentinels') === '2' && field(sentinel, 'num-slaves') === '1'), 'the Sentinels know each other', 20_000);
  const hosts = sentinels.map(({ port }) => `127.0.0.1:${port}`).join(',');
  return { url: `redis-sentinel://${hosts}/main`, primary, replica, currentPort: () => Number(sentinels[0].cli('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', 'main').split('\n')[1]) };
}

/** A Redis Cluster of three primaries. */
export async function startCluster() {
  const nodes = [];
  // Each has a second port for the others, given so that it is free.
  for (let n = 0; n < 3; n += 1) nodes.push(await startRedis({ args: ['--cluster-enabled', 'yes', '--cluster-port', String(await freePort())] }));
  const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`);
  // Takes seconds, in which other tests go on.
  await promisify(execFile)('redis-cli', ['--cluster', 'create', ...addresses, '--cluster-replicas', '0', '--cluster-yes']);
  await until(() => nodes.every((node) => node.cli('CLUSTER', 'INFO').includes('cluster_state:ok')), 'the cluster is complete', 20_000);
  return { url: `redis-cluster://${addresses.join(',')}`, nodes };
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}
