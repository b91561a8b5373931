// The scenario with pusher-js 7.6 over the forms of the transports that Internet Explorer 8 and 9 need, in a page of another origin.

import { scenarioInPage } from '../support/in-page.js';
import { onlyXDomainRequest } from './old-browsers.js';

for (const transport of ['xdr_streaming', 'xdr_polling']) scenarioInPage('7.6', { transports: [transport], before: onlyXDomainRequest });
