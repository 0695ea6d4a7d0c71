// A certified OpenID Provider (npm: oidc-provider) that signs everybody in as one person, rotates
// refresh tokens at every use, and revokes the whole family when one comes twice. Its sessions end
// at /session/end, of which the back channel is told; for the acr urn:test:mfa, and whatever else
// wants a login, the person signs in again.
//
// OP: a JSON object in the environment, written by tests/servers/npm.py. GET /control tells what
// came to pass, and ?token_delay=2 makes the token endpoint's answers that many seconds late.
// GET /api/... is a resource server (RFC 6750).

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'

import Provider, { interactionPolicy } from 'oidc-provider'
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js'

const options = JSON.parse(process.env.OP)
const { port, clientId, clientSecret, accessTokenLifetime } = options
const MFA = 'urn:test:mfa'
const issuer = `http://127.0.0.1:${port}`
const person = { sub: 'ines', name: 'Ines', email: 'ines@op.example', email_verified: true }
const counters = {
  token_calls: 0,
  refreshes: 0,
  refused: 0,
  families_lost: 0,
  revocations: 0,
  logouts: 0,
  backchannel_logouts: 0,
  backchannel_failures: 0,
}
const settings = { token_delay: 0 }
const storage = new Map() // the adapter's own forgets all but the last thousand

const provider = new Provider(issuer, {
  adapter: (model) => new MemoryAdapter(model, storage),
  clients: [
    {
      client_id: clientId,
      client_secret: clientSecret,
      redirect_uris: options.redirectUris,
      post_logout_redirect_uris: options.postLogoutRedirectUris,
      backchannel_logout_uri: options.backchannelLogoutUri,
      backchannel_logout_session_required: true,
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
    },
  ],
  acrValues: [MFA],
  claims: {
    openid: ['sub', 'acr', 'amr', 'auth_time'],
    profile: ['name'],
    email: ['email', 'email_verified'],
  },
  scopes: ['openid', 'offline_access', 'profile', 'email', 'calendar'],
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  jwks: { keys: [{ ...rsaKey(), kid: 'op', use: 'sig', alg: 'RS256' }] },
  features: {
    backchannelLogout: { enabled: true },
    claimsParameter: { enabled: true },
    devInteractions: { enabled: false },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => false,
      getResourceServerInfo: (ctx, resource) => ({
        audience: resource,
        scope: 'calendar',
        accessTokenTTL: accessTokenLifetime,
        accessTokenFormat: 'opaque',
      }),
    },
    rpInitiatedLogout: {
      enabled: true,
      logoutSource: confirmAtOnce,
      postLogoutSuccessSource: signedOut,
    },
  },
  // The library's own dispatcher goes nowhere near this machine, where our sites are.
  fetch: (url, { dispatcher, ...request }) => fetch(url, request),
  findAccount: (ctx, id) => ({ accountId: id, claims: () => person }),
  interactions: { policy: policy(), url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: accessTokenLifetime, RefreshToken: 86_400, Grant: 86_400 },
})

function rsaKey() {
  return generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' })
}

// The library asks for a stronger login only where `claims` calls it essential; this OP always.
function policy() {
  const prompts = interactionPolicy.base()
  const wanted = (acr) => acr?.values ?? [acr?.value]
  const check = ({ oidc }) =>
    wanted(oidc.claims?.id_token?.acr).includes(MFA) && oidc.session.acr !== MFA
  const told = ['mfa', 'a second factor is wanted', 'login_required']
  prompts.get('login').checks.add(new interactionPolicy.Check(...told, check))
  return prompts
}

// The person is always there, has a second factor at hand, and consents to all that is asked.
async function signIn(ctx) {
  const { params, session, prompt, grantId } = await provider.interactionDetails(ctx.req, ctx.res)
  const result = {}
  if (prompt.name === 'login') {
    const { reasons } = prompt
    const acr = reasons.includes('mfa') ? MFA : session?.acr
    result.login = { accountId: person.sub, acr, amr: acr === MFA ? ['pwd', 'otp'] : ['pwd'] }
    if (reasons.some((name) => name.startsWith('essential_acr')) && !reasons.includes('mfa')) {
      result.error = 'unmet_authentication_requirements'
    }
  }
  if (prompt.name === 'consent') {
    const { Grant } = provider
    const grant =
      (grantId && (await Grant.find(grantId))) ||
      new Grant({ accountId: person.sub, clientId: params.client_id })
    grant.addOIDCScope(params.scope)
    for (const [resource, scopes] of Object.entries(prompt.details.missingResourceScopes ?? {})) {
      grant.addResourceScope(resource, scopes.join(' '))
    }
    result.consent = { grantId: await grant.save() }
  }
  await provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: true })
  ctx.respond = false
}

// The page that asks whether to sign out, and says yes by itself.
function confirmAtOnce(ctx, form) {
  const yes = '<input type="hidden" name="logout" value="yes"/></form>'
  const submit = '<script>document.forms[0].submit()</script>'
  ctx.body = `<!doctype html><title>Signing out</title>${form.replace('</form>', yes)}${submit}`
}

function signedOut(ctx) {
  ctx.body = '<!doctype html><title>Signed out</title><p>You are signed out.'
}

async function api(ctx) {
  const given = /^Bearer (.+)$/i.exec(ctx.get('Authorization'))?.[1]
  const token = given && (await provider.AccessToken.find(given))
  if (!token || token.isExpired) {
    ctx.status = 401
    ctx.set('WWW-Authenticate', given ? 'Bearer error="invalid_token"' : 'Bearer')
    return
  }
  ctx.body = { sub: token.accountId, aud: token.aud ?? null, scope: token.scope ?? '' }
}

async function control(ctx) {
  Object.assign(settings, Object.fromEntries(new URLSearchParams(ctx.querystring)))
  ctx.body = counters
}

provider.use(async (ctx, next) => {
  if (ctx.path.startsWith('/interaction/')) return signIn(ctx)
  if (ctx.path.startsWith('/api/')) return api(ctx)
  if (ctx.path === '/control') return control(ctx)
  if (ctx.path === '/token') {
    counters.token_calls += 1
    await next()
    return pause(Number(settings.token_delay) * 1000) // the answer is late, its effects are not
  }
  return next()
})
provider.on('grant.success', (ctx) => {
  if (ctx.oidc.params.grant_type === 'refresh_token') counters.refreshes += 1
})
provider.on('grant.error', () => (counters.refused += 1))
provider.on('grant.revoked', (ctx) => {
  if (ctx.oidc.route === 'revocation') counters.revocations += 1
  if (ctx.oidc.route === 'token') counters.families_lost += 1
})
provider.on('end_session.success', () => (counters.logouts += 1))
provider.on('backchannel.success', () => (counters.backchannel_logouts += 1))
provider.on('backchannel.error', (ctx, error) => {
  counters.backchannel_failures += 1
  console.error(error.message, error.cause ?? '')
})

provider.listen(port, '127.0.0.1')
