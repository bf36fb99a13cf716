#!/bin/sh
# Run once by the postgres image, as its superuser: the application's own role and database. Row-level security binds
# this role; it would not bind a superuser.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$(cat /run/secrets/postgres_app_password)" --username "$POSTGRES_USER" \
    --dbname postgres <<'SQL'
CREATE ROLE stillhouse LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE stillhouse OWNER stillhouse;
SQL
