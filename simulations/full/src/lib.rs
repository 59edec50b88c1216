//! The full level of the simulation: the code that ships, with unmodified libp2p, in virtual time.
//!
//! ```text
//!  time        one thread on which clocks, timers and randomness are the simulation's
//!  net         the network: streams over the links of the model; libp2p's transport on it
//!  federation  nodes made of the product's parts, and what happens to them
//!  narrator    what one of them says, for people
//! ```
//!
//! The product gets a transport, an executor, a clock and a seed, and knows nothing of all this.

pub mod federation;
pub mod narrator;
pub mod net;
pub mod time;
