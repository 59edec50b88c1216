// A stock js-libp2p peer: dials a coordinator through an entry, is identified, subscribes to the registry's topic, and checks the
// signatures of the records that it receives. Prints one line of JSON for each step.
//
//   node peer.mjs MULTIADDR FEDERATION WRITERS
//
// MULTIADDR is the entry's, FEDERATION its id in hexadecimal; it ends when records of so many WRITERS have come.
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { webSockets } from '@libp2p/websockets'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHash, createPublicKey, verify } from 'node:crypto'
import { createLibp2p } from 'libp2p'
import { WebSocket } from 'ws'

// What Node before version 22 has not, and libp2p uses.
globalThis.WebSocket ??= WebSocket
Promise.withResolvers ??= () => {
  const it = {}
  it.promise = new Promise((resolve, reject) => Object.assign(it, { resolve, reject }))
  return it
}

const [address, federation, wanted] = process.argv.slice(2)
const prefix = `/hedgerow/${federation}`
const topic = `${prefix}/registry/1`
const say = line => console.log(JSON.stringify(line))

/// The envelope of a record (mesh/RECORDS.md). Throws where it is none.
function open (bytes) {
  const SIGNATURE = 64
  const HEADER = 91
  if (bytes.length < HEADER + SIGNATURE || bytes[0] !== 1) throw new Error('not an envelope of version 1')
  const hex = (from, to) => Buffer.from(bytes.subarray(from, to)).toString('hex')
  const number = at => Buffer.from(bytes).readBigUInt64BE(at).toString()
  const signed = Buffer.concat([Buffer.from('hedgerow-record-v1\0'), bytes.subarray(0, bytes.length - SIGNATURE)])
  // A public key of Ed25519 in DER has twelve bytes in front (RFC 8410).
  const der = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), bytes.subarray(34, 66)])
  const key = createPublicKey({ key: der, format: 'der', type: 'spki' })
  if (!verify(null, signed, key, bytes.subarray(bytes.length - SIGNATURE))) throw new Error('the signature does not hold')
  return { kind: bytes[1], federation: hex(2, 34), writer: hex(34, 66), epoch: number(66), seq: number(74) }
}

const node = await createLibp2p({
  start: false,
  transports: [webSockets()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    gossip: gossipsub({ msgIdFn: message => createHash('sha256').update(message.data).digest().subarray(0, 20) })
  }
})
// The federation is in the protocol's name.
node.services.gossip.protocols = ['1.1.0', '1.0.0'].map(version => `${prefix}/gossip/${version}`)
await node.start()

const identified = new Promise(resolve => {
  node.addEventListener('peer:identify', event => resolve(event.detail))
})
const writers = new Set()
const enough = new Promise((resolve, reject) => {
  node.services.gossip.addEventListener('message', ({ detail }) => {
    if (detail.topic !== topic) return
    try {
      const record = open(detail.data)
      if (record.federation !== federation) throw new Error('of another federation')
      say({ record })
      if (writers.add(record.writer).size >= Number(wanted)) resolve()
    } catch (error) {
      reject(error)
    }
  })
})
const connection = await node.dial(multiaddr(address))
const peer = await identified
say({ identified: peer.peerId.toString(), agent: peer.agentVersion, protocol: peer.protocolVersion })
say({ ping_ms: await node.services.ping.ping(connection.remotePeer) })
node.services.gossip.subscribe(topic)
say({ subscribed: topic })
await enough
say({ writers: writers.size })
await node.stop()
process.exit(0)
