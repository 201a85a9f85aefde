//! Habits of the code base that a machine can hold us to.

mod arrows;
mod commits;
mod kernel;
mod links;
mod returns;
mod table;

pub use arrows::arrows_point_down;
pub use commits::subjects_name_an_area;
pub use kernel::kernel_gates;
pub use links::links_of_the_documents_resolve;
pub use returns::{counted_returns, member, member_by_btf};
pub use table::{table_is_current, write_table};
