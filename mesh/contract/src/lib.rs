//! The HTTP contract that existing agents speak, as pure functions: nothing here does I/O or reads a clock.
