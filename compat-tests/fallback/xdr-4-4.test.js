// The scenario with pusher-js 4.4 over the forms of the transports that Internet Explorer 8 and 9 need, in a page of another origin.

import { scenarioInPage } from '../support/in-page.js';
import { onlyXDomainRequest } from './old-browsers.js';

/** pusher-js does not listen for errors of XDomainRequest: only silence tells it that the server is gone. */
const SEES_AT_ONCE = 'clients of a killed server see 1006, reconnect and subscribe again';

for (const transport of ['xdr_streaming', 'xdr_polling']) {
  scenarioInPage('4.4', { transports: [transport], before: onlyXDomainRequest, only: (title) => title !== SEES_AT_ONCE });
}
