//! Habits of the code base that a machine can hold us to.

mod arrows;
mod commits;
mod table;

pub use arrows::arrows_point_down;
pub use commits::subjects_name_an_area;
pub use table::{table_is_current, write_table};
