// Bayeux as `curl` speaks it.

/** Posts JSON (a value, or text that is sent as it is) and resolves with the replies. */
export async function post(url, messages, headers = {}) {
  const response = await request(url, messages, headers);
  if (response.status !== 200) throw new Error(`status ${response.status}: ${await response.text()}`);
  return response.json();
}

/** As `post`, and resolves with the response whatever its status. */
export function request(url, messages, headers = {}) {
  return fetch(url, { method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: typeof messages === 'string' ? messages : JSON.stringify(messages) });
}

/** Every way to publish without a session (`bayeux.md` 2.8, 3.2, 3.5). Each resolves with the replies. */
export const PLAIN_PUBLISH = {
  'a form': async (url, message) => (await fetch(url, { method: 'POST', body: new URLSearchParams({ message: JSON.stringify(message) }) })).json(),
  'a JSON object': (url, message) => post(url, message),
  'a JSON array': (url, message) => post(url, [message]),
  'a form without a content type': async (url, message) =>
    (await fetch(url, { method: 'POST', body: Buffer.from(`message=${encodeURIComponent(JSON.stringify(message))}`) })).json(),
  'a path below the mount': (url, message) => post(`${url}/some/where`, message),
  'a script': async (url, message) => {
    const text = await (await fetch(`${url}?${new URLSearchParams({ message: JSON.stringify(message), jsonp: 'receive' })}`)).text();
    return JSON.parse(/^\/\*\*\/receive\((.*)\);$/.exec(text)[1]);
  },
};

/** A session of its own, by its replies. */
export async function handshake(url, ext = undefined) {
  const [reply] = await post(url, { channel: '/meta/handshake', version: '1.0', supportedConnectionTypes: ['long-polling'], ext });
  if (!reply.successful) throw new Error(reply.error);
  const { clientId } = reply;
  const send = async (message) => (await post(url, { clientId, ...message }))[0];
  return {
    clientId,
    reply,
    subscribe: (subscription, more) => send({ channel: '/meta/subscribe', subscription, ...more }),
    unsubscribe: (subscription) => send({ channel: '/meta/unsubscribe', subscription }),
    publish: (channel, data, more) => send({ channel, data, ...more }),
    disconnect: () => send({ channel: '/meta/disconnect' }),
    /** Resolves with the connect reply and the messages behind it. `timeout`: how long it may be held, in ms. */
    connect: (timeout = undefined, more = {}) =>
      post(url, { channel: '/meta/connect', clientId, connectionType: 'long-polling', ...(timeout === undefined ? {} : { advice: { timeout } }), ...more }),
  };
}
