// The server under test: Raptor, or with the environment variable BAYEUX_SERVER=faye a real Faye, which shows that a test asks for what Faye does.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { atEnd } from '../../support/at-end.js';
import { TEST_APP, startRaptor } from '../../support/raptor.js';

/** Whether the tests run against a real Faye. */
export const IS_FAYE = process.env.BAYEUX_SERVER === 'faye';

/** Where Bayeux is served, on either server. */
export const MOUNT = '/faye';

/**
 * How long a connect is held unless a test says otherwise: short, so that idle cycles and lost sessions are soon over. Not shorter: Faye's clients
 * give a connect up after 1.2 times the hold, and where browsers of other tests come up beside them an answer takes a few tenths of a second.
 */
export const HOLD_SECS = 3;

/**
 * Starts the server under test on a free port.
 *
 * @param {object} [options]
 * @param {number} [options.holdSecs] how long a connect is held; a session lives twice as long
 * @returns {Promise<Server>}
 *
 * @typedef {object} Server
 * @property {number} port
 * @property {string} url `http://127.0.0.1:PORT/faye`
 * @property {() => Promise<Server>} restart ends it and starts it again on the same port
 */
export async function startServer({ holdSecs = HOLD_SECS } = {}) {
  return IS_FAYE ? startFaye(holdSecs) : startBayeux({ bayeux: { hold_secs: holdSecs, session_secs: 2 * holdSecs } });
}

/**
 * Starts Raptor with an app that Faye clients use as they use Faye: anybody may publish.
 *
 * @param {object} [options] `app`: keys of the app; `bayeux`: keys of its `[apps.bayeux]`; `config`: further keys of the configuration file;
 *   `start`: starts it, `startRaptor` or `startNodes`
 * @returns {Promise<Server & import('../../support/raptor.js').Raptor>}
 */
export async function startBayeux({ app = {}, bayeux = {}, config = {}, start = startRaptor } = {}) {
  const apps = [{ ...TEST_APP, ...app, bayeux: { mounts: [MOUNT], client_publish: 'open', ...bayeux } }];
  return withMount(await start({ config: { ...config, apps } }));
}

/** A real Faye, whatever the environment says. */
export async function startFaye(holdSecs = HOLD_SECS, port = 0) {
  const program = spawn(process.execPath, [fileURLToPath(new URL('faye-server.js', import.meta.url)), port, holdSecs], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(program, 'close');
  async function stop() {
    program.kill('SIGKILL');
    await ended;
  }
  atEnd(stop);

  const [line] = await once(createInterface(program.stdout), 'line');
  return withMount({
    port: Number(line),
    restart: async () => {
      await stop();
      return startFaye(holdSecs, Number(line));
    },
  });
}

function withMount(server) {
  return { ...server, url: `http://127.0.0.1:${server.port}${MOUNT}`, restart: async (...how) => withMount(await server.restart(...how)) };
}
