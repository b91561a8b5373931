// A redis-server of a test's own.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { atEnd } from './at-end.js';

const START_TIMEOUT_MS = 10_000;

/**
 * Starts one on a free port of 127.0.0.1, without persistence. It ends with the test file.
 *
 * @param {object} [options] `keeps`: it writes down all that it holds before anybody hears of it, and has it again after `kill` and `restart`
 * @returns {Promise<{port: number, url: string, kill: () => Promise<void>, restart: () => Promise<void>}>} `kill` loses what it held, if it does not keep it
 */
export async function startRedis({ keeps = false } = {}) {
  const port = await freePort();
  const directory = mkdtempSync(join(tmpdir(), 'raptor-redis-'));
  let child;

  async function start() {
    const keeping = keeps ? ['--appendonly', 'yes', '--appendfsync', 'always'] : [];
    child = spawn('redis-server', ['--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', directory, ...keeping], { stdio: 'ignore' });
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (!(await answers(port))) {
      if (Date.now() > deadline) throw new Error('redis-server does not start');
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
  async function kill() {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await ended;
  }
  await start();
  atEnd(async () => {
    await kill();
    rmSync(directory, { recursive: true, force: true });
  });
  return { port, url: `redis://127.0.0.1:${port}`, kill, restart: start };
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

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
