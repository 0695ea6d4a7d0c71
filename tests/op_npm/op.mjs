// A certified OpenID Provider (npm: oidc-provider) that signs everybody in as one person, rotates
// refresh tokens at every use, and revokes the whole family when one comes twice.
//
// OP: a JSON object in the environment, written by tests/servers/npm.py. GET /control tells what
// came to pass, and ?token_delay=2 makes the token endpoint's answers that many seconds late.
// GET /api/... is a resource server (RFC 6750).

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'

import Provider from 'oidc-provider'
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js'

const { port, clientId, clientSecret, redirectUris, accessTokenLifetime } = JSON.parse(process.env.OP)
const issuer = `http://127.0.0.1:${port}`
const person = { sub: 'ines', name: 'Ines', email: 'ines@op.example', email_verified: true }
const counters = { token_calls: 0, refreshes: 0, refused: 0, families_lost: 0, revocations: 0 }
const settings = { token_delay: 0 }
const storage = new Map() // the adapter's own forgets all but the last thousand

const provider = new Provider(issuer, {
  adapter: (model) => new MemoryAdapter(model, storage),
  clients: [
    {
      client_id: clientId,
      client_secret: clientSecret,
      redirect_uris: redirectUris,
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
    },
  ],
  claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'] },
  scopes: ['openid', 'offline_access', 'profile', 'email', 'calendar'],
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  jwks: { keys: [{ ...rsaKey(), kid: 'op', use: 'sig', alg: 'RS256' }] },
  features: {
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
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => person }),
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: accessTokenLifetime, RefreshToken: 86_400, Grant: 86_400 },
})

function rsaKey() {
  return generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' })
}

// The person is always there and consents to all that is asked.
async function signIn(ctx) {
  const { params, session, prompt, grantId } = await provider.interactionDetails(ctx.req, ctx.res)
  const result = { login: { accountId: session?.accountId ?? person.sub } }
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
  counters[ctx.oidc.route === 'revocation' ? 'revocations' : 'families_lost'] += 1
})

provider.listen(port, '127.0.0.1')
