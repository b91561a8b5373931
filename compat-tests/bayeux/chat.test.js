// The chat of js-clients/faye-chat on Faye and on Raptor, with no change but the address.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { openPage } from './support/in-page.js';

const chat = fileURLToPath(new URL('../../js-clients/faye-chat/', import.meta.url));

// The chat's `npm install`.
const modules = mkdtempSync(join(tmpdir(), 'raptor-chat-'));
symlinkSync(fileURLToPath(new URL('../node_modules/faye-1.4', import.meta.url)), join(modules, 'faye'));
atEnd(() => rmSync(modules, { recursive: true }));

/** Runs a program of the chat to its end, or, if it is told where to listen, until the tests are over. */
function run(program, args, env) {
  const child = spawn(program, args, { cwd: chat, env: { PATH: process.env.PATH, NODE_PATH: modules, ...env }, stdio: ['ignore', 'pipe', 'inherit'] });
  atEnd(() => child.kill('SIGKILL'));
  return child;
}

async function listening(script, env) {
  const [line] = await once(createInterface(run(process.execPath, [script], { PORT: '0', ...env }).stdout), 'line');
  return /http:\S+/.exec(line)[0];
}

const SERVERS = {
  Faye: () => listening('faye.js', {}),
  Raptor: async () => `${(await startRaptor({ config: null, args: ['--listen', '127.0.0.1:0'] })).url}/faye`,
};

describe('the chat', { timeout: 60_000 }, () => {
  for (const [name, start] of Object.entries(SERVERS)) {
    test(`runs on ${name}`, async () => {
      const FAYE_URL = await start();
      const address = await listening('app.js', { FAYE_URL });
      const pages = [await openPage(), await openPage()];
      for (const page of pages) {
        await page.goto(address);
        await page.waitForFunction(() => document.getElementById('state').textContent === 'connected');
      }
      await pages[0].fill('[name=user]', 'Ann');
      await pages[0].fill('[name=text]', 'hello <everybody>');
      await pages[0].click('button');
      await shown(pages, ['Ann: hello <everybody>']);

      assert.deepEqual(await once(run(process.execPath, ['announce.js', 'from Node'], { FAYE_URL }), 'close'), [0, null]);
      await shown(pages, ['Ann: hello <everybody>', 'Node: from Node']);
      assert.deepEqual(await once(run('ruby', ['announce.rb', 'from Ruby'], { FAYE_URL }), 'close'), [0, null]);
      await shown(pages, ['Ann: hello <everybody>', 'Node: from Node', 'Ruby: from Ruby']);
    });
  }
});

async function shown(pages, texts) {
  for (const page of pages) {
    const read = () => page.locator('#messages li').allTextContents();
    await until(async () => (await read()).length >= texts.length, texts.at(-1));
    assert.deepEqual(await read(), texts);
  }
}
