// The scenario with pusher-js 8.6 as pages load it.

import { scenarioInPage } from '../support/in-page.js';

scenarioInPage('8.6');
