//! x
pub mod rotating;
pub mod stamp;
