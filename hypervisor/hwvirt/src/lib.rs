#![no_std]
//! x

