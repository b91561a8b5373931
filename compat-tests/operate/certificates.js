// Certificates for tests, made by openssl.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
const openssl = (...args) => execFileSync('openssl', args, { stdio: 'ignore' });

/** Makes `NAME.pem` for localhost, which vouches for itself, and `NAME.key` in the directory. Returns the certificate. */
export function makeCertificate(directory, name) {
  const [certificate, key] = [join(directory, `${name}.pem`), join(directory, `${name}.key`)];
  openssl('req', '-x509', ...KEY, '-days', '2', '-subj', `/CN=${name}`, '-addext', 'subjectAltName=DNS:localhost', '-keyout', key, '-out', certificate);
  return readFileSync(certificate, 'utf8');
}

/** Makes a certificate, by default a client's, that another one of the directory vouches for. Returns `{cert, key}`. */
export function signCertificate(directory, name, by, extension = 'extendedKeyUsage=clientAuth') {
  const path = (file) => join(directory, file);
  openssl('req', '-new', ...KEY, '-subj', `/CN=${name}`, '-addext', extension, '-keyout', path(`${name}.key`), '-out', path(`${name}.csr`));
  openssl('x509', '-req', '-in', path(`${name}.csr`), '-CA', path(`${by}.pem`), '-CAkey', path(`${by}.key`), '-CAcreateserial', '-copy_extensions', 'copy', '-days', '2', '-out', path(`${name}.pem`));
  return { cert: readFileSync(path(`${name}.pem`), 'utf8'), key: readFileSync(path(`${name}.key`), 'utf8') };
}
