//! The answers, from a federation with nodes and guests.
