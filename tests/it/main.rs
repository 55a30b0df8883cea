//! The gateway from outside: stories with bytes at both ends, by subject. One binary.

mod house;
