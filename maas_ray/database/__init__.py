"""The platform's database: engine, transactions, migrations, leases. Each room declares and queries its own tables."""
