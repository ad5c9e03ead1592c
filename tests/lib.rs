//! Integration tests across the crates live beside this file.
